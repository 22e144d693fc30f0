//! What no prompt of feedback says, and that it has every word.

use std::collections::{BTreeSet, HashMap};

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use vp_shapes::split::{Composition, HELDOUT, compositions, heldout, heldout_of};
use vp_shapes::words::{Background, Color, Relation, Shape, Size};
use vp_shapes::{Description, Split};

#[test]
fn the_list_is_read_line_by_line() {
    let lines: Vec<&str> = HELDOUT.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).collect();
    let names: Vec<String> = heldout().iter().map(Composition::to_string).collect();
    assert_eq!(names, lines);
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "a line is there twice");
}

#[test]
fn what_is_trained_on_has_every_word_but_no_heldout_composition() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut words = BTreeSet::new();
    for i in 0..20_000 {
        let (description, caption) = [Split::Train, Split::Feedback][i % 2].prompt(&mut rng);
        let said = Description::parse(&caption).expect("a phrasing is a caption");
        for heldout in [heldout_of(&description), heldout_of(&said)] {
            assert!(heldout.is_empty(), "{caption:?} has {heldout:?}");
        }
        let single = said.groups.iter().flat_map(|group| {
            let count = ["one", "two", "three"][group.count - 1];
            [Some(count), group.size.map(Size::word), group.color.map(Color::word), Some(group.shape.word())]
        });
        words.extend(single.chain([said.relation.map(Relation::word), said.background.map(Background::word)]).flatten());
    }
    let mut expected: BTreeSet<&str> = ["one", "two", "three"].into();
    expected.extend(Shape::ALL.iter().map(|shape| shape.word()));
    expected.extend(Color::ALL.iter().map(|color| color.word()));
    expected.extend(Size::ALL.iter().map(|size| size.word()));
    expected.extend(Background::ALL.iter().map(|background| background.word()));
    expected.extend(Relation::ALL.iter().map(|relation| relation.word()));
    assert_eq!(words, expected);
}

#[test]
fn no_prompt_of_feedback_validation_or_test_says_what_one_of_another_says() {
    const DRAWS: usize = 4000;
    let mut seen: Vec<BTreeSet<String>> = Vec::new();
    for split in [Split::Feedback, Split::Validation, Split::Test] {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let (mut said, mut categories, mut found) = (BTreeSet::new(), HashMap::new(), HashMap::new());
        for _ in 0..DRAWS {
            let (description, caption) = split.prompt(&mut rng);
            let read = Description::parse(&caption).expect("a phrasing is a caption");
            assert!(heldout_of(&read).len() <= usize::from(split != Split::Feedback), "{caption:?}");
            heldout_of(&read).into_iter().for_each(|composition| *found.entry(composition).or_insert(0) += 1);
            said.insert(read.canonical().to_string());
            *categories.entry(split.category(&description).expect("a category")).or_insert(0) += 1;
        }
        assert!(seen.iter().all(|other| other.is_disjoint(&said)), "{}", split.name());
        assert!(said.len() > 200, "{} says {} things", split.name(), said.len());
        seen.push(said);
        if split == Split::Feedback {
            assert!(found.is_empty() && categories.len() == 3, "{found:?} {categories:?}");
            continue;
        }
        assert_eq!(categories.len(), 6, "{categories:?}");
        let rare = |composition: &&Composition| found.get(composition).is_none_or(|count| *count < DRAWS / 100);
        assert_eq!(heldout().iter().find(rare), None, "{found:?}");
        // Half have a listed composition, a third of these each kind.
        for category in ["color", "relation", "count"] {
            let count = categories[&format!("held-out {category}")];
            assert!((DRAWS * 14 / 100..DRAWS * 20 / 100).contains(&count), "{categories:?}");
        }
    }
}

#[test]
fn what_says_the_same_is_one_description() {
    let of = |caption: &str| Description::parse(caption).expect("a caption").canonical().to_string();
    for (one, other) in [
        ("a red circle above a small square on a white background", "a white background with a small square below a red circle"),
        ("a cross right of a blue cross", "a blue cross left of a cross"),
        ("a red circle and a blue square", "a blue square and a red circle"),
        ("a red circle and a red circle", "two red circles"),
        ("two big crosses, grey background", "two large crosses on a gray background"),
    ] {
        assert_eq!(of(one), of(other));
    }
    for (one, other) in [
        ("a red circle above a blue square", "a blue circle above a red square"),
        ("a red circle above a blue square", "a blue square above a red circle"),
        ("a red circle and a blue square", "a red circle above a blue square"),
        ("two crosses", "three crosses"),
        ("two crosses", "two large crosses"),
    ] {
        assert_ne!(of(one), of(other));
    }
}

#[test]
fn a_relation_is_one_composition_from_either_side() {
    let of = |caption: &str| compositions(&Description::parse(caption).expect("a caption"));
    assert_eq!(of("a circle above a square"), of("a square below a circle"));
    assert_eq!(of("a circle left of a square"), of("a square right of a circle"));
    assert_ne!(of("a circle above a square"), of("a square above a circle"));
    assert_eq!(of("two red circles"), [Composition::Color(Color::Red, Shape::Circle), Composition::Count(2, Shape::Circle)]);
}
