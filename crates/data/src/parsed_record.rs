//! What every reader of preference data yields.

use crate::Record;

/// One entry of a preference set: a record, `None` where nobody labelled the entry, or what is wrong with it.
pub(crate) struct ParsedRecord {
    /// Where the entry stands, as in `line 7`.
    pub(crate) place: String,
    pub(crate) record: Result<Option<Record>, String>,
}

/// The entries of a set, in order.
pub(crate) type ParsedRecords = Box<dyn Iterator<Item = ParsedRecord> + Send>;
