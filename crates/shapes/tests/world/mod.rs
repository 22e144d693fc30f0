//! Pictures with captions that are true of them, and captions that are false in one thing.
#![allow(dead_code)]

use rand::{Rng, RngExt};
use vp_shapes::judge::ClaimKind;
use vp_shapes::split::heldout_of;
use vp_shapes::variant::changed;
use vp_shapes::{Description, Group, Object, Scene, Split};

/// A scene, and a caption of it as it is understood.
pub struct Example {
    pub scene: Scene,
    pub caption: Description,
}

/// Without and with a listed composition by turns.
pub fn example(i: usize, rng: &mut impl Rng) -> Example {
    let description = if i.is_multiple_of(2) { Split::Train.draw(rng) } else { with_a_listed_composition(rng) };
    let scene = Scene::of(&description, rng);
    let caption = Description::parse(&description.phrase(rng)).expect("a phrasing is a caption");
    Example { scene, caption }
}

/// A description with one listed composition, of each category as often.
fn with_a_listed_composition(rng: &mut impl Rng) -> Description {
    let wanted = ["color", "relation", "count"][rng.random_range(0..3)];
    let is_wanted = |description: &Description| matches!(heldout_of(description)[..], [one] if one.category() == wanted);
    std::iter::repeat_with(|| Description::draw(rng)).find(is_wanted).expect("each category has some")
}

/// The caption with one thing of `kind` changed so that it is false; `None` if it says nothing of that kind.
pub fn falsified(example: &Example, kind: ClaimKind, rng: &mut impl Rng) -> Option<Description> {
    (0..20).find_map(|_| {
        let at = rng.random_range(0..example.caption.groups.len());
        changed(&example.caption, at, kind, rng).filter(|caption| !is_true(caption, &example.scene))
    })
}

/// Whether a caption is true of a scene, known without looking.
pub fn is_true(caption: &Description, scene: &Scene) -> bool {
    let groups: Vec<Group> = caption.groups.iter().flat_map(|group| std::iter::repeat_n(*group, group.count)).collect();
    let is_background = caption.background.is_none_or(|background| background == scene.background);
    is_background
        && groups.len() == scene.objects.len()
        && orders(scene.objects.len()).iter().any(|order| {
            let objects: Vec<&Object> = order.iter().map(|i| &scene.objects[*i]).collect();
            let fits = |(group, object): (&Group, &&Object)| {
                group.shape == object.shape
                    && group.color.is_none_or(|color| color == object.color)
                    && group.size.is_none_or(|size| size == object.size)
            };
            let is_related = caption.relation.is_none_or(|relation| relation.margin(objects[0].center, objects[1].center) > 0.3);
            groups.iter().zip(&objects).all(fits) && is_related
        })
}

fn orders(count: usize) -> Vec<Vec<usize>> {
    if count == 0 {
        return vec![vec![]];
    }
    let insert = |order: Vec<usize>| (0..count).map(move |at| [&order[..at], &[count - 1], &order[at..]].concat());
    orders(count - 1).into_iter().flat_map(insert).collect()
}
