//! Tables of what can be chosen by name, one line per entry.

/// A registered name and what it is, for `list`, `--help` and the generated reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The name written in configs and on the command line.
    pub name: &'static str,
    /// One sentence, the doc comment of the entry's line.
    pub summary: &'static str,
}

/// A table of configurations that a user chooses from by name.
///
/// Expands to an externally tagged serde enum, so that a TOML section is named by the choice (`[reward.vp_score]`) and serde
/// points at the line of a typo *inside* it, to `ENTRIES` for listings, and to `name()`.
///
/// ```
/// #[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
/// #[serde(deny_unknown_fields)]
/// pub struct Jpeg { quality: u8 }
///
/// vp_core::registry! {
///     /// The `[reward.<name>]` section.
///     pub enum RewardConfig {
///         /// Negative JPEG size; not differentiable.
///         JpegCompressibility = "jpeg_compressibility" => Jpeg,
///     }
/// }
/// assert_eq!(RewardConfig::ENTRIES[0].name, "jpeg_compressibility");
/// assert_eq!(RewardConfig::ENTRIES[0].summary, "Negative JPEG size; not differentiable.");
/// ```
///
/// `pub enum RewardConfig: Build { … }` also makes `chosen()` and `chosen_mut()`, the choice's own configuration as `&dyn Build` and
/// `&mut dyn Build`, so that a new entry needs no `match` anywhere.
#[macro_export]
macro_rules! registry {
    ($(#[$enum_doc:meta])* pub enum $Enum:ident : $Trait:path { $($(#[doc = $summary:literal])+ $Variant:ident = $name:literal => $Config:ty,)+ }) => {
        $crate::registry! {
            $(#[$enum_doc])*
            pub enum $Enum { $($(#[doc = $summary])+ $Variant = $name => $Config,)+ }
        }

        impl $Enum {
            /// The configuration of this choice.
            pub fn chosen(&self) -> &dyn $Trait {
                match self { $(Self::$Variant(config) => config,)+ }
            }

            /// The configuration of this choice, to change it.
            pub fn chosen_mut(&mut self) -> &mut dyn $Trait {
                match self { $(Self::$Variant(config) => config,)+ }
            }
        }
    };
    ($(#[$enum_doc:meta])* pub enum $Enum:ident { $($(#[doc = $summary:literal])+ $Variant:ident = $name:literal => $Config:ty,)+ }) => {
        $(#[$enum_doc])*
        #[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
        pub enum $Enum {
            $($(#[doc = $summary])+ #[serde(rename = $name)] $Variant($Config),)+
        }

        impl $Enum {
            /// Every entry, in the order of the table.
            pub const ENTRIES: &'static [$crate::Entry] =
                &[$($crate::Entry { name: $name, summary: concat!($($summary),+).trim_ascii() },)+];

            /// The name under which this choice is registered.
            pub fn name(&self) -> &'static str {
                match self { $(Self::$Variant(_) => $name,)+ }
            }
        }
    };
}
