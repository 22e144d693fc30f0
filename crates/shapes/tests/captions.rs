//! What captions say, and which texts are none.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use vp_shapes::words::{Background, Color, Relation, Shape, Size};
use vp_shapes::{Description, Group};

/// Whether `said` is `whole` with some of it left out; a relation may be said from the other side.
fn says_part_of(said: &Description, whole: &Description) -> bool {
    let same_order = said.relation == whole.relation;
    let turned = whole.relation.is_some() && said.relation == whole.relation.map(Relation::inverse);
    let fits = |(said, whole): (&Group, &Group)| {
        let is_said = said.count == whole.count && said.shape == whole.shape && said.color == whole.color;
        is_said && said.size.is_none_or(|size| whole.size == Some(size))
    };
    let groups_fit = if turned && !same_order {
        said.groups.iter().zip(whole.groups.iter().rev()).all(fits)
    } else {
        said.groups.iter().zip(&whole.groups).all(fits)
    };
    let is_background = said.background.is_none_or(|background| whole.background == Some(background));
    (same_order || turned) && said.groups.len() == whole.groups.len() && groups_fit && is_background
}

#[test]
fn every_phrasing_is_read_as_it_was_meant() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let (mut complete, mut turned) = (0, 0);
    for _ in 0..5000 {
        let whole = Description::draw(&mut rng);
        let caption = whole.phrase(&mut rng);
        let said = Description::parse(&caption).unwrap_or_else(|error| panic!("{error}"));
        assert!(says_part_of(&said, &whole), "{caption:?} is read as {said:?}, meant as {whole:?}");
        complete += usize::from(said == whole);
        turned += usize::from(said.relation != whole.relation);
    }
    assert!((2000..4500).contains(&complete), "{complete} say everything, in the plain order");
    assert!((500..2000).contains(&turned), "{turned} relations are said from the other side");
}

#[test]
fn a_description_reads_back_from_its_plainest_phrasing() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    for _ in 0..2000 {
        let description = Description::draw(&mut rng);
        assert_eq!(Description::parse(&description.to_string()), Ok(description));
    }
}

#[test]
fn the_same_said_in_other_words() {
    let cases = [
        ("A big red circle to the left of a little blue square", "a large red circle left of a small blue square"),
        ("three green triangles, black background", "three green triangles on a black background"),
        ("on a black background three green triangles", "three green triangles on a black background"),
        ("A white background with an yellow cross.", "a yellow cross on a white background"),
        ("two plus", "two crosses"),
        ("one tiny disc over a square on a grey background", "a small circle above a square on a gray background"),
        ("red circle under cross", "a red circle below a cross"),
        ("a circle beneath a square", "a circle below a square"),
        ("a circle to the right of a square", "a circle right of a square"),
        ("a red circle and a blue square on a grey background", "a red circle and a blue square on a gray background"),
    ];
    for (words, plain) in cases {
        let description = Description::parse(words).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(description.to_string(), plain, "{words:?}");
    }
}

#[test]
fn what_is_not_said_is_left_open() {
    let one = |count, size, color, shape| Group { count, size, color, shape };
    let crosses = Description { groups: vec![one(2, None, None, Shape::Cross)], relation: None, background: None };
    assert_eq!(Description::parse("two crosses"), Ok(crosses));
    let groups = vec![one(1, Some(Size::Large), Some(Color::Red), Shape::Circle), one(1, None, Some(Color::Cyan), Shape::Square)];
    let related = Description { groups: groups.clone(), relation: Some(Relation::Above), background: Some(Background::White) };
    assert_eq!(Description::parse("a large red circle above a cyan square on a white background"), Ok(related));
    let together = Description { groups, relation: None, background: None };
    assert_eq!(Description::parse("a large red circle and a cyan square"), Ok(together));
}

#[test]
fn what_is_no_caption_is_said_with_the_word() {
    let cases = [
        ("", "the end"),
        ("a purple circle", "\"purple\""),
        ("a red dog", "\"dog\""),
        ("a red", "the end"),
        ("a red circle beside a square", "\"beside\""),
        ("a red circle above", "the end"),
        ("a red circle above a", "the end"),
        ("four circles", "\"four\""),
        ("a circle on a pink background", "\"pink\""),
        ("background", "\"background\""),
        ("a circle red", "\"red\""),
        ("a circle on a white background on a black background", "\"on\""),
        ("two circles and two squares", "4 objects"),
        ("two circles above a square", "two single objects"),
        ("a circle above a square above a cross", "two single objects"),
        ("a circle and a square above a cross", "two single objects"),
    ];
    for (text, named) in cases {
        let error = Description::parse(text).expect_err(text).to_string();
        // The advice names every word.
        let (message, advice) = error.split_once(" (a caption of shapes").unwrap_or_else(|| panic!("no advice in {error:?}"));
        assert!(message.starts_with(&format!("{text:?}")) && message.contains(named) && !advice.is_empty(), "{error}");
    }
}

#[test]
fn a_completed_description_says_everything_and_keeps_what_was_said() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let open = Description::parse("a circle above a small square").expect("a caption");
    for _ in 0..100 {
        let whole = open.completed(&mut rng);
        assert!(whole.groups.iter().all(|group| group.size.is_some() && group.color.is_some()) && whole.background.is_some());
        assert_eq!((whole.groups[1].size, whole.groups[0].shape, whole.relation), (Some(Size::Small), Shape::Circle, open.relation));
    }
}
