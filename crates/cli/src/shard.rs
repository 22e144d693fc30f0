//! A part of a command's work, so that several machines can share it.

use std::str::FromStr;

use crate::ranks;

/// Part `index`, from 0, of `of`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shard {
    pub index: u64,
    pub of: u64,
}

impl Shard {
    /// All of it.
    pub const WHOLE: Self = Self { index: 0, of: 1 };

    /// The part of this process: what was asked for, or that of its rank.
    ///
    /// # Errors
    /// When a part was asked for, and several ranks have one each already.
    pub fn of_rank(asked: Self) -> anyhow::Result<Self> {
        let ranks = ranks::all();
        match (ranks.are_one(), asked == Self::WHOLE) {
            (true, _) => Ok(asked),
            (false, true) => Ok(Self { index: ranks.rank() as u64, of: ranks.size() as u64 }),
            (false, false) => anyhow::bail!(
                "--shard {}/{}: {} ranks share the work already; leave --shard out, or start one process",
                asked.index + 1,
                asked.of,
                ranks.size()
            ),
        }
    }

    /// Whether item `index` of the work belongs to this part.
    pub fn has(self, index: u64) -> bool {
        index % self.of == self.index
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text.split_once('/').and_then(|(i, k)| Some((i.parse::<u64>().ok()?, k.parse::<u64>().ok()?)));
        match numbers {
            Some((i, k)) if (1..=k).contains(&i) => Ok(Self { index: i - 1, of: k }),
            _ => Err("expected I/K with I from 1 to K, as in 1/4".into()),
        }
    }
}
