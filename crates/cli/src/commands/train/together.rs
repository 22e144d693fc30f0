//! What all ranks of a run must have in common before it begins.

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use vp_trainers::ranks::Ranks;
use vp_trainers::run::checkpoint::Cursor;

use super::Plan;
use crate::ranks;
use crate::terminal::say;

/// What a rank is about to train.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Intent {
    version: String,
    config: serde_json::Value,
    resumes_at: Option<Cursor>,
}

/// Lets all ranks write into the folder that the first has chosen, and refuses ranks that would train something else.
pub(super) fn agree(plan: &mut Plan) -> anyhow::Result<()> {
    let ranks = ranks::all();
    if ranks.are_one() {
        return Ok(());
    }
    let own = Intent {
        version: env!("CARGO_PKG_VERSION").into(),
        config: serde_json::to_value(&plan.config).context("write the config")?,
        resumes_at: plan.resume.as_ref().map(|checkpoint| checkpoint.state.cursor),
    };
    let told = serde_json::to_vec(&(&plan.output, &own)).context("write the config")?;
    let all = ranks.gather(&told)?;
    let read = |bytes: &Vec<u8>| serde_json::from_slice::<(std::path::PathBuf, Intent)>(bytes).ok();
    let (output, first) = read(&all[0]).context("the first rank is of another version")?;
    let other = all.iter().position(|bytes| read(bytes).is_none_or(|(_, intent)| intent != first));
    if let Some(rank) = other {
        bail!("{}", differs(&ranks, rank, &first, read(&all[rank]).map(|(_, intent)| intent).as_ref()));
    }
    plan.output = output;
    if !plan.options.quiet {
        say(format_args!("{} ranks share every update; {}", ranks.size(), changes(first.resumes_at)));
    }
    Ok(())
}

fn changes(resumes_at: Option<Cursor>) -> &'static str {
    match resumes_at {
        Some(Cursor { micro, .. }) if micro > 0 => {
            "the update that was under way is made from its beginning; nothing but rounding depends on the number of ranks"
        }
        _ => "nothing but rounding depends on their number",
    }
}

fn differs(ranks: &Ranks, rank: usize, first: &Intent, other: Option<&Intent>) -> String {
    let what = match other {
        None => "is of another version of this program".into(),
        Some(other) if other.version != first.version => format!("is of version {}, the first rank of {}", other.version, first.version),
        Some(other) if other.config != first.config => "has another config than the first rank".into(),
        Some(other) => {
            let at =
                |cursor: Option<Cursor>| cursor.map_or("no checkpoint".into(), |cursor| format!("the checkpoint of step {}", cursor.step));
            format!("found {}, the first rank {}", at(other.resumes_at), at(first.resumes_at))
        }
    };
    format!("{} {what}; expected the same program, config and run folder on all machines, as on a disk that they share", ranks.name(rank))
}
