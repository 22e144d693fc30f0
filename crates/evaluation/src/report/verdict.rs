//! What the numbers come to, in plain words.

use super::{Report, numbers};
use crate::comparison::{Contrast, Difference, ModelComparison, RewardContrast};
use crate::votes::VoteWins;

/// How many rewards are named in a row.
const NAMED: usize = 3;

/// What is said of one model.
pub(super) struct Verdict {
    pub tone: Tone,
    pub text: String,
}

/// Whether it is good news.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tone {
    Good,
    Bad,
    Open,
}

impl Tone {
    /// The class of a notice.
    pub fn class(self) -> &'static str {
        match self {
            Self::Good => "notice good",
            Self::Bad => "notice bad",
            Self::Open => "notice",
        }
    }
}

/// Which way a reward went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Move {
    Up,
    Down,
    Still,
}

impl Move {
    fn of(reward: &RewardContrast) -> Option<Self> {
        let interval = reward.paired?.interval?;
        Some(match (interval.low > 0.0, interval.high < 0.0) {
            (true, _) => Self::Up,
            (_, true) => Self::Down,
            _ => Self::Still,
        })
    }

    fn verb(self) -> &'static str {
        match self {
            Self::Up => "rose",
            Self::Down => "fell",
            Self::Still => "did not change measurably",
        }
    }
}

/// A verdict on every model that was compared with the baseline, or on there being none.
pub(super) fn verdicts(report: &Report) -> Vec<Verdict> {
    let several = report.contrasts().count() > 1;
    let of = |(comparison, contrast): (&ModelComparison, &Contrast)| {
        let Verdict { mut tone, mut text } = of_rewards(report, contrast);
        if several {
            text = format!("{}: {text}", contrast.candidate);
        }
        let wins = report.votes.iter().flat_map(|votes| &votes.wins).find(|wins| wins.candidate == contrast.candidate);
        if let Some((of_people, said)) = wins.map(|wins| of_votes(wins, comparison)) {
            tone = together(of_people, tone);
            text = format!("{said} {text}");
        }
        Verdict { tone, text }
    };
    let mut found: Vec<Verdict> = report.contrasts().map(of).collect();
    if found.is_empty() {
        let text = "No images before and after could be compared, so there is no verdict.".to_string();
        found.push(Verdict { tone: Tone::Open, text });
    }
    let spoke = report.sentinel.as_ref().and_then(|panel| panel.findings.first());
    if let (Some(finding), Some(first)) = (spoke, found.first_mut()) {
        first.tone = Tone::Bad;
        first.text += &format!(" The sentinel first spoke at step {}.", finding.step);
    }
    found
}

/// What people say outweighs rewards, unless the two point in opposite directions.
fn together(people: Tone, rewards: Tone) -> Tone {
    match (people, rewards) {
        (Tone::Good, Tone::Bad) => Tone::Open,
        (Tone::Open, rewards) => rewards,
        (people, _) => people,
    }
}

fn of_votes(wins: &VoteWins, comparison: &ModelComparison) -> (Tone, String) {
    let VoteWins { candidate, prompts, won, tied, lost, rate } = wins;
    let (baseline, votes) = (&comparison.baseline, numbers::counted(won + tied + lost, "vote"));
    let percent = |share: f64| format!("{:.0}", 100.0 * share);
    if rate.low > 0.5 {
        let [share, low, high] = [rate.estimate, rate.low, rate.high].map(percent);
        (Tone::Good, format!("People prefer {candidate} to {baseline}: {share} % of {votes} (between {low} and {high} %)."))
    } else if rate.high < 0.5 {
        let [share, low, high] = [1.0 - rate.estimate, 1.0 - rate.high, 1.0 - rate.low].map(percent);
        (Tone::Bad, format!("People prefer {baseline} to {candidate}: {share} % of {votes} (between {low} and {high} %)."))
    } else {
        let on = numbers::counted(*prompts, "prompt");
        (Tone::Open, format!("People have no clear preference: {votes} on {on}."))
    }
}

fn of_rewards(report: &Report, contrast: &Contrast) -> Verdict {
    let all: Vec<&RewardContrast> = contrast.families().into_iter().map(|(reward, _)| reward).collect();
    if all.is_empty() {
        return Verdict { tone: Tone::Open, text: "No reward has scored the images: judge by the images themselves.".into() };
    }
    if contrast.prompts < numbers::FEW_PROMPTS {
        return too_few(report, contrast, &all);
    }
    let groups = |is_trained: bool| {
        let of = |wanted: Move| {
            let such = all.iter().filter(|of| report.is_trained(&of.reward) == is_trained && Move::of(of) == Some(wanted));
            (wanted, such.map(|of| of.reward.as_str()).collect::<Vec<_>>())
        };
        [Move::Up, Move::Down, Move::Still].map(of).into_iter().filter(|(_, names)| !names.is_empty()).collect::<Vec<_>>()
    };
    let (trained, watched) = (groups(true), groups(false));
    let (tone, conclusion) = conclusion(&moves(&trained), &moves(&watched));
    Verdict { tone, text: format!("{}: {conclusion}.", clauses(&trained, &watched)) }
}

fn moves(groups: &[(Move, Vec<&str>)]) -> Vec<Move> {
    groups.iter().map(|(moved, _)| *moved).collect()
}

/// `The trained reward vp_score rose, but judge fell`
fn clauses(trained: &[(Move, Vec<&str>)], watched: &[(Move, Vec<&str>)]) -> String {
    let kind = |names: &[&str]| if names.len() == 1 { "reward" } else { "rewards" };
    if let ([(Move::Still, of_trained)], [(Move::Still, others)]) = (trained, watched) {
        return format!("Neither the trained {} {} nor {} changed measurably", kind(of_trained), list(of_trained), list(others));
    }
    let of_trained: Vec<String> =
        trained.iter().map(|(moved, names)| format!("the trained {} {} {}", kind(names), list(names), moved.verb())).collect();
    let moved_alike = |wanted: Move| !trained.is_empty() && trained.iter().all(|(moved, _)| *moved == wanted);
    let of_watched = watched.iter().enumerate().map(|(place, (moved, names))| {
        let too = if moved_alike(*moved) { " too" } else { "" };
        let kind = if trained.is_empty() && place == 0 { format!("the {} ", kind(names)) } else { String::new() };
        format!("{kind}{} {}{too}", list(names), moved.verb())
    });
    let of_watched: Vec<String> = of_watched.collect();
    let is_alike = |place: usize| watched.get(place).is_some_and(|(moved, _)| moved_alike(*moved));
    let said = match (&of_trained[..], &of_watched[..]) {
        ([], []) => "no reward could be compared".into(),
        ([one], []) | ([], [one]) => one.clone(),
        ([first, rest @ ..], []) | ([], [first, rest @ ..]) => format!("{first}, but {}", rest.join(" and ")),
        (trained, [other]) => format!("{}, {} {other}", trained.join(" and "), if is_alike(0) { "and" } else { "but" }),
        (trained, [first, rest @ ..]) => match is_alike(0) {
            true => format!("{}, and {first}, but {}", trained.join(" and "), rest.join(" and ")),
            false => format!("{}, but {first} and {}", trained.join(" and "), rest.join(" and ")),
        },
    };
    let first: String = said.chars().take(1).flat_map(char::to_uppercase).collect();
    first + said.get(1..).unwrap_or_default()
}

fn list(names: &[&str]) -> String {
    let shown = &names[..names.len().min(NAMED)];
    match (shown, names.len() - shown.len()) {
        ([one], 0) => (*one).to_string(),
        ([before @ .., last], 0) => format!("{} and {last}", before.join(", ")),
        (shown, more) => format!("{} and {more} more", shown.join(", ")),
    }
}

/// What follows, from which ways the trained rewards and the others went.
fn conclusion(trained: &[Move], watched: &[Move]) -> (Tone, &'static str) {
    let has = |of: &[Move], wanted: Move| of.contains(&wanted);
    let (up, down) = (has(watched, Move::Up), has(watched, Move::Down));
    match (trained, up, down) {
        ([], true, false) => (Tone::Good, "an improvement, as far as they can tell"),
        ([], false, true) => (Tone::Bad, "a change for the worse, as far as they can tell"),
        ([], true, true) => (Tone::Open, "they do not agree"),
        ([], false, false) => (Tone::Open, "they do not tell the two apart"),
        (trained, ..) if has(trained, Move::Down) => (Tone::Bad, "training made worse what it was to improve"),
        (trained, _, true) if has(trained, Move::Up) => (Tone::Bad, "the model may be exploiting its reward, so look at the images"),
        (_, _, true) => (Tone::Bad, "a change for the worse"),
        (_, true, false) => (Tone::Good, "the gain shows where nothing was trained"),
        (trained, ..) if !has(trained, Move::Up) => (Tone::Open, "training changed nothing that was measured"),
        _ if watched.is_empty() => (Tone::Open, "a trained reward rises by construction, so this alone proves nothing"),
        _ => (Tone::Open, "nothing but the trained reward shows a gain"),
    }
}

/// How far the means have moved. With so few prompts, that is not a verdict.
fn too_few(report: &Report, contrast: &Contrast, all: &[&RewardContrast]) -> Verdict {
    let moved = |of: &&RewardContrast| {
        let Difference { difference, .. } = of.paired?;
        Some(format!("{} {}", report.reward_name(&of.reward), numbers::change(0.0, difference)))
    };
    let moved: Vec<String> = all.iter().filter_map(moved).take(NAMED).collect();
    let is = if contrast.prompts == 1 { "is" } else { "are" };
    let so_far = if moved.is_empty() { String::new() } else { format!("; the means moved by {}", moved.join(", ")) };
    let text = format!("{} {is} too few for a verdict{so_far}.", numbers::counted(contrast.prompts, "prompt"));
    Verdict { tone: Tone::Open, text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Move::{Down, Still, Up};

    #[test]
    fn a_sentence_says_what_rose_and_what_follows() {
        let said = |trained: &[(Move, Vec<&str>)], watched: &[(Move, Vec<&str>)]| {
            let (tone, conclusion) = conclusion(&moves(trained), &moves(watched));
            (tone, format!("{}: {conclusion}.", clauses(trained, watched)))
        };
        let vp = || vec![(Up, vec!["vp_score"])];
        let exploited = "The trained reward vp_score rose, but judge fell: the model may be exploiting its reward, so look at the images.";
        assert_eq!(said(&vp(), &[(Down, vec!["judge"])]), (Tone::Bad, exploited.into()));
        let gained = "The trained reward vp_score rose, and judge and hps rose too: the gain shows where nothing was trained.";
        assert_eq!(said(&vp(), &[(Up, vec!["judge", "hps"])]), (Tone::Good, gained.into()));
        let alone = "The trained reward vp_score rose: a trained reward rises by construction, so this alone proves nothing.";
        assert_eq!(said(&vp(), &[]), (Tone::Open, alone.into()));
        let still = "The trained reward vp_score rose, but a, b, c and 2 more did not change measurably: nothing but the trained reward shows a gain.";
        assert_eq!(said(&vp(), &[(Still, vec!["a", "b", "c", "d", "e"])]), (Tone::Open, still.into()));
        assert_eq!(said(&[], &[(Up, vec!["judge"]), (Down, vec!["hps"])]).1, "The reward judge rose, but hps fell: they do not agree.");
        let none = "Neither the trained reward x nor judge changed measurably: training changed nothing that was measured.";
        assert_eq!(said(&[(Still, vec!["x"])], &[(Still, vec!["judge"])]), (Tone::Open, none.into()));
        assert_eq!(said(&[(Down, vec!["x"])], &[(Up, vec!["judge"])]).0, Tone::Bad);
        assert_eq!(said(&[], &[(Up, vec!["é"])]).1, "The reward é rose: an improvement, as far as they can tell.");
    }

    #[test]
    fn people_outweigh_rewards_unless_they_contradict_each_other() {
        assert_eq!(together(Tone::Good, Tone::Open), Tone::Good);
        assert_eq!(together(Tone::Good, Tone::Bad), Tone::Open);
        assert_eq!(together(Tone::Bad, Tone::Good), Tone::Bad);
        assert_eq!(together(Tone::Open, Tone::Bad), Tone::Bad);
    }
}
