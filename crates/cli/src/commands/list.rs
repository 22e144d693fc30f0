//! `list`: what can be chosen by name.

use crate::args::{Kind, ListArgs};
use crate::failure::Failure;
use crate::listing::{self, Table};
use crate::terminal::print;

/// The top-level entry point for `list`.
pub fn run(args: ListArgs) -> Result<(), Failure> {
    let all = [Kind::Rewards, Kind::Annotators, Kind::Schedulers, Kind::Algos, Kind::LrSchedulers, Kind::Regularizers, Kind::Devices];
    let tables: Vec<Table> = args.kind.map_or(all.to_vec(), |kind| vec![kind]).into_iter().map(table).collect();
    let text = if args.json {
        tables.iter().map(Table::to_json_lines).collect()
    } else {
        tables.iter().map(Table::to_text).collect::<Vec<_>>().join("\n")
    };
    Ok(print(&text)?)
}

fn table(kind: Kind) -> Table {
    match kind {
        Kind::Rewards => listing::rewards(),
        Kind::Annotators => listing::annotators(),
        Kind::Schedulers => listing::schedulers(),
        Kind::Algos => listing::algos(),
        Kind::LrSchedulers => listing::lr_schedulers(),
        Kind::Regularizers => listing::regularizers(),
        Kind::Devices => listing::devices(),
    }
}
