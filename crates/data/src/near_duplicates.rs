//! Prompts that are nearly the same, found exactly and in about linear time.
//!
//! Two prompts are near-duplicates when their letters and digits are the same but for case, or when the sets of their word 3-grams have
//! a Jaccard similarity (shared / all) of at least 3/5: one word changed in fourteen. 3-grams rather than words, because prompts made
//! from one template share most words without saying the same.
//!
//! The search is prefix filtering (Chaudhuri et al., ICDE 2006; Bayardo et al., WWW 2007): with the grams of each prompt in one order,
//! rare ones first, two sets that similar share one of their first `n - ceil(3n/5) + 1` grams, so an index of those finds every pair.

use std::collections::HashMap;

/// The least similarity of near-duplicates, as a fraction.
const SIMILAR: (usize, usize) = (3, 5);

/// For each prompt a number that it shares with its near-duplicates, theirs, and so on: the first prompt of the group.
pub(crate) fn groups(prompts: &[&str]) -> Vec<usize> {
    let mut groups = Groups::new(prompts.len());
    let mut first_of_text = HashMap::new();
    let mut distinct = Vec::new();
    for (index, prompt) in prompts.iter().enumerate() {
        let first = *first_of_text.entry(letters(prompt)).or_insert(index);
        if first == index { distinct.push(index) } else { groups.join(first, index) }
    }
    let sets = gram_sets(&distinct.iter().map(|&index| prompts[index]).collect::<Vec<_>>());
    let mut similar = join_similar(&sets);
    for index in 0..distinct.len() {
        groups.join(distinct[index], distinct[similar.find(index)]);
    }
    (0..prompts.len()).map(|index| groups.find(index)).collect()
}

/// A held-out prompt that is nearly a training prompt.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NearDuplicate {
    /// Which of the held-out prompts.
    pub held_out: usize,
    /// The training prompt most like it.
    pub training: usize,
    /// Jaccard similarity of their word 3-grams; 1 where letters and digits are the same.
    pub similarity: f64,
}

/// The held-out prompts that are near-duplicates of training prompts, or of prompts that are, in their order.
pub fn near_duplicates(held_out: &[String], training: &[String]) -> Vec<NearDuplicate> {
    let all: Vec<&str> = held_out.iter().chain(training).map(String::as_str).collect();
    let mut training_of: HashMap<usize, Vec<usize>> = HashMap::new();
    let groups = groups(&all);
    for (index, group) in groups[held_out.len()..].iter().enumerate() {
        training_of.entry(*group).or_default().push(index);
    }
    let nearest = |(index, group): (usize, &usize)| {
        let candidates = training_of.get(group)?.iter();
        let like = candidates.map(|other| NearDuplicate {
            held_out: index,
            training: *other,
            similarity: similarity(&held_out[index], &training[*other]),
        });
        like.reduce(|best, other| if other.similarity > best.similarity { other } else { best })
    };
    groups[..held_out.len()].iter().enumerate().filter_map(nearest).collect()
}

/// Shared / all of two prompts' word 3-grams.
fn similarity(a: &str, b: &str) -> f64 {
    if letters(a) == letters(b) {
        return 1.0;
    }
    let sets = gram_sets(&[a, b]);
    let shared = sets[0].iter().filter(|gram| sets[1].contains(gram)).count();
    shared as f64 / (sets[0].len() + sets[1].len() - shared).max(1) as f64
}

/// Lower-case letters and digits, nothing between them; a prompt without any is its own text.
fn letters(prompt: &str) -> String {
    let letters: String = prompt.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect();
    if letters.is_empty() { prompt.trim().to_owned() } else { letters }
}

/// The 3-grams of each prompt's words as numbers, the rarest first; shorter prompts are one gram.
fn gram_sets(prompts: &[&str]) -> Vec<Vec<u32>> {
    let (mut words, mut grams, mut counts) = (HashMap::new(), HashMap::new(), Vec::new());
    let mut set_of = |prompt: &&str| {
        let mut number = |word: &str| {
            let next = words.len() as u32 + 1;
            *words.entry(word.to_lowercase()).or_insert(next)
        };
        let split = prompt.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
        let mut numbers: Vec<u32> = split.map(&mut number).collect();
        if numbers.is_empty() {
            return Vec::new();
        }
        // 0 is not a word: it fills up short prompts.
        numbers.resize(numbers.len().max(3), 0);
        let mut set: Vec<u32> = Vec::new();
        for gram in numbers.windows(3) {
            let next = counts.len() as u32;
            let gram = *grams.entry([gram[0], gram[1], gram[2]]).or_insert(next);
            counts.resize(counts.len().max(gram as usize + 1), 0u32);
            set.push(gram);
        }
        set.sort_unstable();
        set.dedup();
        set.iter().for_each(|&gram| counts[gram as usize] += 1);
        set
    };
    let mut sets: Vec<Vec<u32>> = prompts.iter().map(&mut set_of).collect();
    let mut by_rarity: Vec<u32> = (0..counts.len() as u32).collect();
    by_rarity.sort_by_key(|&gram| (counts[gram as usize], gram));
    let mut place = vec![0; counts.len()];
    by_rarity.iter().enumerate().for_each(|(rank, &gram)| place[gram as usize] = rank as u32);
    for set in &mut sets {
        set.iter_mut().for_each(|gram| *gram = place[*gram as usize]);
        set.sort_unstable();
    }
    sets
}

/// The groups that pairs of similar sets make.
fn join_similar(sets: &[Vec<u32>]) -> Groups {
    let mut groups = Groups::new(sets.len());
    let grams = sets.iter().flatten().max().map_or(0, |&gram| gram as usize + 1);
    // The sets that have a gram in their prefix, by size.
    let mut index: Vec<Vec<usize>> = vec![Vec::new(); grams];
    let mut seen = vec![usize::MAX; sets.len()];
    let mut by_size: Vec<usize> = (0..sets.len()).filter(|&set| !sets[set].is_empty()).collect();
    by_size.sort_by_key(|&set| sets[set].len());
    for set in by_size {
        let size = sets[set].len();
        let smallest = (size * SIMILAR.0).div_ceil(SIMILAR.1);
        for &gram in &sets[set][..size - smallest + 1] {
            let others = &mut index[gram as usize];
            let first = others.partition_point(|&other| sets[other].len() < smallest);
            for &other in &others[first..] {
                let is_new = std::mem::replace(&mut seen[other], set) != set;
                if is_new && groups.find(set) != groups.find(other) && are_similar(&sets[set], &sets[other]) {
                    groups.join(set, other);
                }
            }
            others.push(set);
        }
    }
    groups
}

/// Whether sorted sets share at least three fifths of what is in either.
fn are_similar(a: &[u32], b: &[u32]) -> bool {
    // shared / (a + b - shared) >= p / q, solved for shared.
    let needed = (SIMILAR.0 * (a.len() + b.len())).div_ceil(SIMILAR.0 + SIMILAR.1);
    let (mut i, mut j, mut shared) = (0, 0, 0);
    while i < a.len() && j < b.len() && shared + (a.len() - i).min(b.len() - j) >= needed {
        match a[i].cmp(&b[j]) {
            std::cmp::Ordering::Less => i += 1,
            std::cmp::Ordering::Greater => j += 1,
            std::cmp::Ordering::Equal => (i, j, shared) = (i + 1, j + 1, shared + 1),
        }
    }
    shared >= needed
}

/// Disjoint groups, each known by its smallest member.
struct Groups(Vec<usize>);

impl Groups {
    fn new(len: usize) -> Self {
        Self((0..len).collect())
    }

    fn find(&mut self, mut member: usize) -> usize {
        while self.0[member] != member {
            self.0[member] = self.0[self.0[member]];
            member = self.0[member];
        }
        member
    }

    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.find(a), self.find(b));
        self.0[a.max(b)] = a.min(b);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The definition, spelled out.
    pub(crate) fn are_near_duplicates(a: &str, b: &str) -> bool {
        let grams = |prompt: &str| -> BTreeSet<Vec<String>> {
            let lower = prompt.to_lowercase();
            let words: Vec<String> =
                lower.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).map(String::from).collect();
            if words.len() < 3 { [words].into_iter().collect() } else { words.windows(3).map(<[String]>::to_vec).collect() }
        };
        let (x, y) = (grams(a), grams(b));
        let shared = x.intersection(&y).count();
        letters(a) == letters(b) || (letters(a) != a.trim() && shared as f64 / (x.len() + y.len() - shared) as f64 >= 0.6)
    }

    /// Prompts of a few words each, so that many are nearly the same.
    pub(crate) fn prompts(count: usize, words: usize) -> Vec<String> {
        let mut state = 1u64;
        let mut draw = move |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % below
        };
        let mut prompts: Vec<Vec<String>> = Vec::new();
        for index in 0..count {
            let mut prompt = if index > 0 && draw(2) == 0 {
                prompts[draw(index)].clone()
            } else {
                (0..1 + draw(24)).map(|_| format!("word{}", draw(words))).collect()
            };
            for _ in 0..draw(3) {
                let at = draw(prompt.len());
                prompt[at] = format!("word{}", draw(words));
            }
            prompts.push(prompt);
        }
        prompts.into_iter().map(|words| words.join([" ", ", ", "-"][words.len() % 3])).collect()
    }

    #[test]
    fn case_spaces_and_punctuation_do_not_count_and_one_word_in_fourteen() {
        let long = |word: &str| format!("one two three four five six {word} eight nine ten eleven twelve thirteen fourteen");
        let prompts = [
            "A red circle.",
            "a  RED-circle",
            "a red square",
            "🙂",
            "🙃",
            &long("seven"),
            &long("7"),
            "redcircle a",
            "aredcircle",
            "a",
            "A!",
        ];
        let texts: Vec<&str> = prompts.to_vec();
        assert_eq!(groups(&texts), [0, 0, 2, 3, 4, 5, 5, 7, 0, 9, 9]);
        let shorter = |word: &str| format!("one two three four five six {word} eight nine ten eleven twelve thirteen");
        assert_eq!(groups(&[&shorter("seven"), &shorter("7")]), [0, 1]);
    }

    #[test]
    fn leaks_are_found_and_named_by_the_prompt_most_like_them() {
        let texts = |texts: &[&str]| texts.iter().map(|text| text.to_string()).collect::<Vec<_>>();
        let training = texts(&["a red fox in the snow", "an old ship on a calm sea under a bright moon at night, oil painting", "a cow"]);
        let held_out =
            texts(&["a green fox", "A red fox, in the SNOW!", "an old ship on a calm sea under a bright moon at dawn, oil painting"]);
        let found = near_duplicates(&held_out, &training);
        let places: Vec<_> = found.iter().map(|found| (found.held_out, found.training)).collect();
        assert_eq!(places, [(1, 0), (2, 1)]);
        // 13 words and one changed, of 13 + 13 grams 9 shared: 9 / 15.
        assert!(found[0].similarity == 1.0 && (0.6..1.0).contains(&found[1].similarity), "{found:?}");
        assert!(near_duplicates(&held_out, &[]).is_empty());
    }

    #[test]
    fn the_groups_are_those_of_comparing_every_pair() {
        for words in [3, 12, 400] {
            let prompts = prompts(400, words);
            let texts: Vec<&str> = prompts.iter().map(String::as_str).collect();
            let mut expected = Groups::new(texts.len());
            for (a, b) in
                (0..texts.len()).flat_map(|a| (0..a).map(move |b| (a, b))).filter(|&(a, b)| are_near_duplicates(texts[a], texts[b]))
            {
                expected.join(a, b);
            }
            let expected: Vec<usize> = (0..texts.len()).map(|index| expected.find(index)).collect();
            assert_eq!(groups(&texts), expected, "{words} words");
        }
    }

    /// Of template prompts every gram is frequent: the hardest case. Quadratic time would take minutes.
    #[test]
    fn a_hundred_thousand_prompts_take_seconds() {
        let pick = |index: usize, values: &[&'static str]| values[index % values.len()];
        let scene = |index: usize| {
            let size = pick(index, &["small", "large", "huge"]);
            let colour = pick(index / 3, &["red", "blue", "green", "white", "black", "grey", "pink", "brown", "gold", "teal"]);
            format!("a {size} {colour} {}", pick(index / 30, &["circle", "square", "ring", "star", "cross"]))
        };
        let relation = |index: usize| pick(index, &["above", "below", "left of", "right of"]);
        let template = (0..50_000).map(|index| format!("{} {} {}", scene(index), relation(index / 150), scene(index / 600)));
        let prompts: Vec<String> = template.chain(prompts(50_000, 3_000)).collect();
        let start = std::time::Instant::now();
        let groups = groups(&prompts.iter().map(String::as_str).collect::<Vec<_>>());
        let seconds = start.elapsed().as_secs_f64();
        assert_eq!(groups.len(), 100_000);
        assert!(seconds < 20.0, "{seconds} s");
    }
}
