//! "Did you mean …": the nearest known name to a misspelt one.

/// The entry of `known` nearest to `name` by edit distance, if it is near enough to be a likely slip.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let name = name.to_lowercase();
    let (distance, best) = known.into_iter().map(|k| (edit_distance(&name, &k.to_lowercase()), k)).min_by_key(|(d, _)| *d)?;
    // A third of the letters wrong is still a slip; more is another word.
    (distance <= best.len().max(name.len()).div_ceil(3)).then_some(best)
}

/// `", did you mean `x`?"`, or nothing.
pub fn did_you_mean<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    nearest(name, known).map(|k| format!(", did you mean `{k}`?")).unwrap_or_default()
}

/// Optimal-string-alignment distance: insertions, deletions, substitutions and swaps of neighbours.
fn edit_distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut d = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            d[i][j] = match (i, j) {
                (i, 0) => i,
                (0, j) => j,
                _ => {
                    let substitute = d[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                    let mut best = substitute.min(d[i - 1][j] + 1).min(d[i][j - 1] + 1);
                    if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                        best = best.min(d[i - 2][j - 2] + 1);
                    }
                    best
                }
            };
        }
    }
    d[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_mended_and_other_words_are_not() {
        assert_eq!(nearest("relf", ["refl", "ddpo"]), Some("refl"));
        assert_eq!(nearest("DDIN", ["ddim", "ddpm"]), Some("ddim"));
        assert_eq!(nearest("learnig_rate", ["learning_rate", "weight_decay"]), Some("learning_rate"));
        assert_eq!(nearest("banana", ["refl", "ddpo"]), None);
        assert_eq!(did_you_mean("relf", ["refl"]), ", did you mean `refl`?");
    }
}
