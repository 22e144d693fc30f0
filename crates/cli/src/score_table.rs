//! A table of scores for people to read.

use std::fmt;

use vp_core::shown;
use vp_data::ImageEntry;

/// How much of a prompt or a file's name is shown, in characters.
const LONGEST: usize = 400;

/// The images of each prompt, best first by the first reward.
pub struct ScoreTable<'a> {
    /// The columns' names.
    pub rewards: Vec<&'a str>,
    /// What was scored.
    pub images: &'a [ImageEntry],
    /// For each image, its score by each reward.
    pub rows: &'a [Vec<f64>],
}

impl ScoreTable<'_> {
    /// Indices of images by prompt, in the order in which prompts first appear.
    fn groups(&self) -> Vec<Vec<usize>> {
        let mut place = std::collections::HashMap::new();
        let mut groups: Vec<Vec<usize>> = Vec::new();
        for (i, image) in self.images.iter().enumerate() {
            let group = *place.entry(&image.caption).or_insert(groups.len());
            match groups.get_mut(group) {
                Some(group) => group.push(i),
                None => groups.push(vec![i]),
            }
        }
        for group in &mut groups {
            group.sort_by(|a, b| self.rows[*b][0].total_cmp(&self.rows[*a][0]));
        }
        groups
    }

    fn line(&self, f: &mut fmt::Formatter<'_>, first: &str, cells: impl Iterator<Item = String>, last: &str) -> fmt::Result {
        write!(f, "{first:>6}")?;
        for (name, cell) in self.rewards.iter().zip(cells) {
            let width = name.chars().count().max(9);
            write!(f, "  {cell:>width$}")?;
        }
        writeln!(f, "  {last}")
    }
}

/// What was read, as part of a line.
fn read(text: &str) -> String {
    shown::cut(&shown::one_line(text), LONGEST).into()
}

impl fmt::Display for ScoreTable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |score: f64| format!("{score:.4}");
        for group in self.groups() {
            writeln!(f, "{}", read(&self.images[group[0]].caption))?;
            self.line(f, "rank", self.rewards.iter().map(|name| name.to_string()), "file")?;
            for &i in &group {
                // Equal scores share a rank.
                let rank = 1 + group.iter().filter(|other| self.rows[**other][0] > self.rows[i][0]).count();
                self.line(f, &rank.to_string(), self.rows[i].iter().copied().map(show), &read(&self.images[i].file_name))?;
            }
            writeln!(f)?;
        }
        let count = self.rows.len();
        let mean = |reward: usize| self.rows.iter().map(|row| row[reward]).sum::<f64>() / count as f64;
        let images = if count == 1 { "1 image".to_owned() } else { format!("{count} images") };
        self.line(f, "mean", (0..self.rewards.len()).map(mean).map(show), &images)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_is_one_line_whatever_it_holds() {
        let images = [ImageEntry { path: "a".into(), file_name: "a\u{1b}[2J".into(), caption: format!("two\nlines {}", "x".repeat(9000)) }];
        let table = ScoreTable { rewards: vec!["first"], images: &images, rows: &[vec![0.5]] }.to_string();
        assert!(table.starts_with("two\\u{a}lines xxx") && table.contains("  a\\u{1b}[2J\n"), "{table}");
        assert!(table.lines().count() == 5 && table.lines().all(|line| line.chars().count() <= LONGEST), "{table}");
    }

    #[test]
    fn images_are_ranked_within_their_prompt() {
        let image = |(file, prompt): (&str, &str)| ImageEntry { path: file.into(), file_name: file.into(), caption: prompt.into() };
        let images = [("a", "fox"), ("b", "sea"), ("c", "fox"), ("d", "fox")].map(image);
        let rows = [[0.5, 4.0], [-0.25, 3.0], [0.75, 2.0], [0.5, 1.0]].map(Vec::from);
        let table = ScoreTable { rewards: vec!["first", "another one"], images: &images, rows: &rows };
        let expected = "\
fox
  rank      first  another one  file
     1     0.7500       2.0000  c
     2     0.5000       4.0000  a
     2     0.5000       1.0000  d

sea
  rank      first  another one  file
     1    -0.2500       3.0000  b

  mean     0.3750       2.5000  4 images
";
        assert_eq!(table.to_string(), expected);
    }
}
