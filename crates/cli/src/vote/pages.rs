//! The page on which people vote: what it is told and what it may write. It learns who drew what only when it asks for the results.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use serde::Deserialize;
use serde_json::{Value, json};
use vp_data::{Aspect, Preferred};

use super::ballot::{Answer, Ballot, Mode, Question, voter};
use super::results;
use crate::serve::{Asked, Reply, image};

/// What the page sends.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sent {
    voter: String,
    /// Which question is answered: somebody may have answered it in another window meanwhile.
    question: String,
    answer: String,
    #[serde(default)]
    ratings: BTreeMap<Aspect, f64>,
}

/// The reply to a request about votes; `None` for what is none.
pub fn reply(ballot: &Mutex<Ballot>, asked: &Asked) -> Option<Reply> {
    let mut ballot = ballot.lock().unwrap_or_else(PoisonError::into_inner);
    let name = || voter(asked.value("voter").unwrap_or_default());
    Some(match (asked.writes, asked.path.as_str()) {
        (false, "/api/question") => name().map_or_else(bad_name, |name| Reply::json(&question(&mut ballot, &name))),
        (false, "/api/results") => Reply::json(&results::of(&ballot, asked.value("voter"))),
        (false, "/image") => picture(&ballot, asked).unwrap_or_else(Reply::missing),
        (true, "/api/vote") => vote(&mut ballot, &asked.body),
        (true, "/api/undo") => match name().map(|name| ballot.undo(&name).map(|undone| (name, undone))) {
            None => bad_name(),
            Some(Ok((name, undone))) => {
                let mut told = question(&mut ballot, &name);
                told["undone"] = undone.into();
                Reply::json(&told)
            }
            Some(Err(error)) => Reply::refused(500, &format!("{error:#}")),
        },
        _ => return None,
    })
}

fn bad_name() -> Reply {
    Reply::refused(400, "expected a name of at most 40 characters")
}

/// What a voter is asked now.
fn question(ballot: &mut Ballot, voter: &str) -> Value {
    let found = ballot.question(voter).or_else(|| {
        ballot.look_for_more();
        ballot.question(voter)
    });
    let (done, of) = ballot.progress(voter);
    let mode = match ballot.mode {
        Mode::Compare => "compare",
        Mode::Rate => "rate",
    };
    let mut told =
        json!({ "mode": mode, "voter": voter, "done": done, "of": of, "question": null, "aspects": Aspect::ALL.map(Aspect::name) });
    if let Some(Question { record, shown, .. }) = &found {
        told["prompt"] = ballot.contest.records[*record].prompt.clone().into();
        told["images"] = shown.len().into();
        told["question"] = found.as_ref().map(|question| question.id(ballot.seed())).into();
    }
    told
}

/// The image at a place of the question that a voter is asked now: its address tells nothing of where it comes from.
fn picture(ballot: &Ballot, asked: &Asked) -> Option<Reply> {
    let found = ballot.question(&voter(asked.value("voter")?)?)?;
    if found.id(ballot.seed()) != asked.value("question")? {
        return None;
    }
    Some(image(&ballot.image(&found, asked.number("at")?)?, None, asked.known.as_deref()))
}

fn vote(ballot: &mut Ballot, body: &[u8]) -> Reply {
    let sent: Sent = match serde_json::from_slice(body) {
        Ok(sent) => sent,
        Err(error) => return Reply::refused(400, &format!("this is not an answer: {error}")),
    };
    let Some(name) = voter(&sent.voter) else { return bad_name() };
    if ballot.question(&name).map(|question| question.id(ballot.seed())) != Some(sent.question.clone()) {
        return Reply::refused(409, "that was answered already, in another window perhaps");
    }
    let prefer = |preferred, both_bad| Answer::Prefer { preferred, both_bad };
    let answer = match sent.answer.as_str() {
        "left" => prefer(Preferred::First, false),
        "right" => prefer(Preferred::Second, false),
        "tie" => prefer(Preferred::Tie, false),
        "both_bad" => prefer(Preferred::Tie, true),
        "skip" => Answer::Skip,
        "rate" => Answer::Rate(sent.ratings),
        other => return Reply::refused(400, &format!("expected left, right, tie, both_bad, skip or rate, found {other:?}")),
    };
    match ballot.answer(&name, &answer) {
        Ok(()) => Reply::json(&question(ballot, &name)),
        Err(error) => Reply::refused(400, &format!("{error:#}")),
    }
}
