//! What training never sees, and that it sees every word.

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
fn training_has_no_heldout_composition_but_every_word() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut words = BTreeSet::new();
    for _ in 0..20_000 {
        let description = Split::Train.draw(&mut rng);
        let caption = description.phrase(&mut rng);
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
fn a_heldout_prompt_has_one_heldout_composition_and_each_occurs() {
    const DRAWS: usize = 6000;
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let (mut found, mut categories) = (HashMap::new(), HashMap::new());
    for _ in 0..DRAWS {
        let description = Split::Heldout.draw(&mut rng);
        let caption = description.phrase(&mut rng);
        let said = Description::parse(&caption).expect("a phrasing is a caption");
        let [composition] = heldout_of(&said)[..] else { panic!("{caption:?} has {:?}", heldout_of(&said)) };
        assert_eq!(heldout_of(&description), [composition]);
        *found.entry(composition).or_insert(0) += 1;
        *categories.entry(composition.category()).or_insert(0) += 1;
    }
    for composition in heldout() {
        assert!(found.get(composition).is_some_and(|count| *count > DRAWS / 50), "{composition} occurs too rarely: {found:?}");
    }
    for (category, count) in categories {
        assert!((DRAWS * 29 / 100..DRAWS * 38 / 100).contains(&count), "{category} occurs {count} times in {DRAWS}");
    }
}

#[test]
fn feedback_validation_and_test_share_nothing_that_is_held_out() {
    let mut seen: Vec<BTreeSet<String>> = Vec::new();
    for split in [Split::Feedback, Split::Validation, Split::Test] {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let (mut said, mut found, mut trained_on) = (BTreeSet::new(), BTreeSet::new(), 0);
        for _ in 0..6000 {
            let description = split.draw(&mut rng);
            match heldout_of(&description)[..] {
                [] => trained_on += 1,
                [composition] => {
                    found.insert(composition.to_string());
                    // "a below b" and "b above a" are the same to ask for.
                    let turned = description.relation.map(|relation| {
                        let groups = description.groups.iter().rev().copied().collect();
                        Description { groups, relation: Some(relation.inverse()), ..description.clone() }
                    });
                    said.extend([Some(description.to_string()), turned.map(|turned| turned.to_string())].into_iter().flatten());
                }
                ref several => panic!("{description} has {several:?}"),
            }
        }
        assert_eq!(found.len(), heldout().len(), "{}", split.name());
        let expected = if split == Split::Feedback { 2800..3200 } else { 0..1 };
        assert!(expected.contains(&trained_on), "{}: {trained_on}", split.name());
        assert!(seen.iter().all(|other| other.is_disjoint(&said)), "{}", split.name());
        seen.push(said);
    }
}

#[test]
fn no_prompt_of_the_splits_of_tuning_says_what_one_of_another_says() {
    const DRAWS: usize = 4000;
    let mut seen: Vec<BTreeSet<String>> = Vec::new();
    for split in [Split::Tuning, Split::TuningValidation, Split::TuningTest] {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let (mut said, mut categories) = (BTreeSet::new(), HashMap::new());
        for _ in 0..DRAWS {
            let (description, caption) = split.prompt(&mut rng);
            let read = Description::parse(&caption).expect("a phrasing is a caption");
            assert!(heldout_of(&read).len() <= usize::from(split != Split::Tuning), "{caption:?}");
            said.insert(read.canonical().to_string());
            *categories.entry(split.category(&description).expect("a category")).or_insert(0) += 1;
        }
        assert!(seen.iter().all(|other| other.is_disjoint(&said)), "{}", split.name());
        assert!(said.len() > 200, "{} says {} things", split.name(), said.len());
        seen.push(said);
        let listed: usize = categories.iter().filter(|(category, _)| category.starts_with("held-out")).map(|(_, count)| count).sum();
        let expected = if split == Split::Tuning { 0..1 } else { DRAWS * 46 / 100..DRAWS * 54 / 100 };
        assert!(expected.contains(&listed), "{}: {listed} of {DRAWS} have a listed composition", split.name());
        assert_eq!(categories.len(), if split == Split::Tuning { 3 } else { 6 }, "{categories:?}");
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
