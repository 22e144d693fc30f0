//! The report's tables, the same for HTML and Markdown.

use super::numbers::{self, NONE};
use super::{Fact, LeakPanel, Provenance, Report, SentinelPanel};
use crate::comparison::{Contrast, Difference, ModelComparison, RewardContrast, Standings};
use crate::sentinel::{Action, Rule};
use crate::votes::{VoteAgreement, VoteCounts, VoteWins};

/// A table of texts.
pub(super) struct Table {
    /// What it shows, in a sentence.
    pub caption: String,
    /// Names of the columns; the first column names the row.
    pub head: Vec<String>,
    pub rows: Vec<Vec<String>>,
    /// How many columns, from the left, are words and not numbers.
    pub words: usize,
    /// Whether those words are sentences, which may be broken, and not names.
    pub prose: bool,
}

impl Table {
    fn new(caption: String, head: &[&str], words: usize, rows: Vec<Vec<String>>) -> Self {
        Self { caption, head: head.iter().map(ToString::to_string).collect(), rows, words, prose: false }
    }

    fn of_prose(self) -> Self {
        Self { prose: true, ..self }
    }
}

impl Report {
    /// A reward's name, marked if it was trained.
    pub(super) fn reward_name(&self, reward: &str) -> String {
        if self.is_trained(reward) { format!("{reward} (trained)") } else { reward.to_string() }
    }

    pub(super) fn is_trained(&self, reward: &str) -> bool {
        // A term of what was trained, as vp_score/fidelity, was trained too.
        self.trained_rewards
            .iter()
            .any(|trained| reward.strip_prefix(trained.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
    }
}

fn win_rate(contrast: &RewardContrast) -> [String; 2] {
    contrast.win_rate.map_or_else(
        || [NONE.into(), NONE.into()],
        |found| [numbers::share(&found.rate), format!("{}/{}/{}", found.wins, found.ties, found.losses)],
    )
}

/// Baseline, candidate, difference and verdict.
fn means(paired: Option<&Difference>) -> [String; 4] {
    paired.map_or_else(
        || [NONE; 4].map(String::from),
        |of| {
            let verdict = numbers::verdict(of).to_string();
            [numbers::mean(of.baseline, of), numbers::mean(of.candidate, of), numbers::difference(of), verdict]
        },
    )
}

fn counts(of: &RewardContrast) -> String {
    format!("{}, {}", of.paired.map_or(0, |paired| paired.prompts), of.images)
}

/// Some rewards of one model against the baseline.
pub(super) fn rewards(report: &Report, comparison: &ModelComparison, contrast: &Contrast, shown: &[&RewardContrast]) -> Table {
    let row = |of: &RewardContrast| {
        let sign = of.sign_test.map_or(NONE.into(), |test| numbers::p_value(test.p_value));
        let permutation = of.permutation_test.map_or(NONE.into(), |test| numbers::p_value(test.p_value));
        let counts = [sign, permutation, counts(of)];
        let name = [report.reward_name(&of.reward)];
        name.into_iter().chain(means(of.paired.as_ref())).chain(win_rate(of)).chain(counts).collect()
    };
    let level = numbers::percent(comparison.options.bootstrap.level);
    let caption = format!(
        "{} against {}: means over prompts, paired difference and win rate with {level} intervals",
        contrast.candidate, comparison.baseline
    );
    let head = [
        "reward",
        "baseline",
        "candidate",
        "difference",
        "verdict",
        "win rate",
        "won/tied/lost",
        "p (sign test)",
        "p (permutation)",
        "prompts, images",
    ];
    Table::new(caption, &head, 1, shown.iter().copied().map(row).collect())
}

/// Rewards by category, all or those that `is_shown` names; without a row if there are no categories.
pub(super) fn categories(report: &Report, comparison: &ModelComparison, contrast: &Contrast, is_shown: impl Fn(&str) -> bool) -> Table {
    let mut rows = Vec::new();
    for category in &contrast.categories {
        let name = category.category.as_deref().unwrap_or("no category");
        rows.extend(category.rewards.iter().filter(|of| is_shown(&of.reward)).map(|of| {
            let [rate, _] = win_rate(of);
            let row = [name.to_string(), report.reward_name(&of.reward)].into_iter().chain(means(of.paired.as_ref()));
            row.chain([rate, counts(of)]).collect()
        }));
    }
    let level = numbers::percent(comparison.options.bootstrap.level);
    let caption = format!("{} against {}, by category, with {level} intervals", contrast.candidate, comparison.baseline);
    Table::new(caption, &["category", "reward", "baseline", "candidate", "difference", "verdict", "win rate", "prompts, images"], 2, rows)
}

/// How often people prefer each model to the baseline.
pub(super) fn wins(comparison: &ModelComparison, votes: &VoteCounts) -> Table {
    let row = |of: &VoteWins| {
        let counts = format!("{}/{}/{}", of.won, of.tied, of.lost);
        vec![of.candidate.clone(), numbers::share(&of.rate), counts, of.prompts.to_string()]
    };
    let level = numbers::percent(comparison.options.bootstrap.level);
    let caption = format!("How often people prefer a model to {}, with {level} intervals over prompts", comparison.baseline);
    Table::new(caption, &["model", "preferred", "won/tied/lost", "prompts"], 1, votes.wins.iter().map(row).collect())
}

/// How often rewards prefer what people prefer: all or those that `is_shown` names.
pub(super) fn agreement(report: &Report, votes: &VoteCounts, is_shown: impl Fn(&str) -> bool) -> Table {
    let row =
        |of: &VoteAgreement| vec![report.reward_name(&of.reward), numbers::share(&of.rate), of.votes.to_string(), of.prompts.to_string()];
    let rows = votes.agreement.iter().filter(|of| is_shown(&of.reward)).map(row).collect();
    let caption = "How often a reward prefers the image that people prefer; chance is 50 %".to_string();
    Table::new(caption, &["reward", "agrees", "votes", "prompts"], 1, rows)
}

/// What images look like, and how different those of one prompt are.
pub(super) fn looks(comparison: &ModelComparison, contrast: &Contrast) -> Table {
    let row = |name: &str, of: &Difference| {
        std::iter::once(name.to_string()).chain(means(Some(of))).chain([of.prompts.to_string()]).collect::<Vec<_>>()
    };
    let mut rows: Vec<_> = contrast.pixels.iter().map(|pixels| row(&pixels.statistic.replace('_', " "), &pixels.paired)).collect();
    if let Some((diversity, paired)) = contrast.diversity.as_ref().and_then(|diversity| Some((diversity, diversity.paired.as_ref()?))) {
        rows.push(row(&format!("diversity ({})", diversity.metric), paired));
    }
    let level = numbers::percent(comparison.options.bootstrap.level);
    let caption =
        format!("{} against {}: pixels and diversity, means over prompts with {level} intervals", contrast.candidate, comparison.baseline);
    Table::new(caption, &["statistic", "baseline", "candidate", "difference", "verdict", "prompts"], 1, rows)
}

/// All models in order by one reward.
pub(super) fn standings(report: &Report, comparison: &ModelComparison, of: &Standings) -> Table {
    let row = |model: &crate::comparison::Standing| {
        let wins = format!("{} of {}", model.wins, model.comparisons);
        vec![model.model.clone(), numbers::rating(model.elo, model.interval), wins, of.prompts.to_string()]
    };
    let level = numbers::percent(comparison.options.bootstrap.level);
    let caption = format!("By {}: Elo with {level} intervals", report.reward_name(&of.reward));
    Table::new(caption, &["model", "Elo", "won", "prompts"], 1, of.models.iter().map(row).collect())
}

/// What each rule was set to, and whether it fired.
pub(super) fn rules(panel: &SentinelPanel) -> Table {
    let row = |rule: Rule| {
        let config = &panel.config;
        let limit = match rule {
            Rule::RewardUpHeldoutDown => format!("{} standard errors each", config.z),
            Rule::WatchedRewardDown => format!("{} standard errors", config.z),
            Rule::DiversityCollapse => format!("below {} of its start", config.diversity_collapse.share),
            Rule::SaturationDrift => format!("a shift of {}", config.saturation_drift.shift),
            Rule::BrightnessDrift => format!("a shift of {}", config.brightness_drift.shift),
            Rule::EdgeCollapse => format!("below {} of its start", config.edge_collapse.share),
            Rule::DarkImages => format!("a rise of {}", config.dark_images.rise),
            Rule::WeightsRunAway => config.weights_run_away.limit.map_or("no limit set".into(), |limit| format!("above {limit:e}")),
        };
        let steps: Vec<_> = panel.findings.iter().filter(|finding| finding.rule == rule).map(|finding| finding.step.to_string()).collect();
        let fired = match (config.action(rule), steps.is_empty()) {
            (Action::Off, _) => "not looked at".to_string(),
            (_, true) => "no".to_string(),
            (_, false) => format!("at step {}", steps.join(", ")),
        };
        vec![rule.name().replace('_', " "), action(config.action(rule)).to_string(), limit, fired]
    };
    Table::new("Rules of the sentinel".into(), &["rule", "action", "from", "fired"], 4, Rule::ALL.map(row).to_vec())
}

pub(super) fn action(action: Action) -> &'static str {
    match action {
        Action::Off => "off",
        Action::Warn => "warn",
        Action::Stop => "stop",
    }
}

/// Held-out prompts that are like training prompts, the most alike first.
pub(super) fn leaks(panel: &LeakPanel) -> Table {
    let mut leaks: Vec<_> = panel.leaks.iter().collect();
    leaks.sort_by(|one, other| other.similarity.total_cmp(&one.similarity));
    let rows = leaks.iter().map(|leak| vec![leak.heldout.clone(), leak.training.clone(), numbers::plain(leak.similarity)]);
    Table::new("Held-out prompts that are like training prompts".into(), &["held out", "in training", "similarity"], 2, rows.collect())
        .of_prose()
}

/// Versions, hardware and time.
pub(super) fn facts(provenance: &Provenance) -> Vec<Table> {
    let groups = [("Versions", &provenance.versions), ("Hardware", &provenance.hardware), ("Time", &provenance.time)];
    groups.into_iter().filter_map(|(name, facts)| table_of(name, facts)).collect()
}

/// Of models, prompts and configuration; there may be many.
pub(super) fn hashes(provenance: &Provenance) -> Option<Table> {
    table_of("Hashes", &provenance.hashes)
}

fn table_of(name: &str, facts: &[Fact]) -> Option<Table> {
    let rows = facts.iter().map(|fact| vec![fact.name.clone(), fact.value.clone()]).collect();
    (!facts.is_empty()).then(|| Table::new(name.into(), &["what", "value"], 2, rows).of_prose())
}

/// How many images or scores were left out, and which: at most `named` of them.
pub(super) fn left_out(contrast: &Contrast, named: usize) -> Option<(String, Vec<String>)> {
    let unpaired = contrast.unpaired.iter().map(|of| format!("prompt {}, seed {}: no image of {}", of.index, of.seed, of.missing_from));
    let unscored = contrast.rewards.iter().flat_map(|reward| {
        reward.unscored.iter().map(|of| format!("prompt {}, seed {}: {} has no score by {}", of.index, of.seed, of.model, reward.reward))
    });
    let diversity = contrast.diversity.iter().flat_map(|diversity| &diversity.unpaired);
    let undiverse = diversity.map(|of| format!("prompt {}: no diversity of {}", of.index, of.missing_from));
    let all: Vec<String> = unpaired.chain(unscored).chain(undiverse).collect();
    let images = contrast.unpaired.len();
    let scores: usize = contrast.rewards.iter().map(|reward| reward.unscored.len()).sum();
    let prompts = contrast.diversity.as_ref().map_or(0, |diversity| diversity.unpaired.len());
    let counts = [(images, "image without a partner"), (scores, "score that is missing"), (prompts, "prompt without diversity")];
    let counts: Vec<_> = counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{what}: {count}")).collect();
    let more = all.len().saturating_sub(named);
    let mut lines: Vec<String> = all.into_iter().take(named).collect();
    lines.extend((more > 0).then(|| format!("and {more} more, named in report.json")));
    (!counts.is_empty()).then(|| (format!("Left out: {}", counts.join("; ")), lines))
}
