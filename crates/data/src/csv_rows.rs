//! Comma-separated values, as RFC 4180 and spreadsheets have them.

/// A row, and the line that it begins on, from 1.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) line: usize,
    pub(crate) fields: Vec<String>,
}

/// The rows of a text. A field in quotes may hold commas, line ends and, doubled, quotes; blank lines are passed over.
///
/// # Errors
/// A quote that is never closed, or is followed by anything but a comma or the end of the line; with the line.
pub(crate) fn rows(text: &str) -> Result<Vec<Row>, String> {
    let mut rows = Vec::new();
    let mut characters = text.chars().peekable();
    let (mut line, mut fields) = (1, Vec::new());
    let mut began = line;
    while characters.peek().is_some() {
        let mut field = String::new();
        let quoted = characters.next_if_eq(&'"').is_some();
        let ended = loop {
            match characters.next() {
                Some('"') if quoted && characters.next_if_eq(&'"').is_some() => field.push('"'),
                Some('"') if quoted => {
                    characters.next_if_eq(&'\r');
                    break match characters.next() {
                        Some(',') => false,
                        Some('\n') | None => true,
                        Some(other) => return Err(format!("line {line}: {other:?} after a closing quote; expected a comma")),
                    };
                }
                Some(',') if !quoted => break false,
                Some('\n') if !quoted => break true,
                Some('\r') if !quoted && characters.peek() == Some(&'\n') => {}
                Some(character) => {
                    line += usize::from(character == '\n');
                    field.push(character);
                }
                None if quoted => return Err(format!("line {began}: a quote is never closed")),
                None => break true,
            }
        };
        fields.push(field);
        if ended {
            let row = Row { line: began, fields: std::mem::take(&mut fields) };
            rows.extend((row.fields.len() > 1 || !row.fields[0].trim().is_empty()).then_some(row));
            line += 1;
            began = line;
        }
    }
    if !fields.is_empty() {
        // The text ends with a comma: another field, which is empty.
        fields.push(String::new());
        rows.push(Row { line: began, fields });
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str) -> Vec<Vec<String>> {
        rows(text).unwrap().into_iter().map(|row| row.fields).collect()
    }

    #[test]
    fn fields_are_plain_or_quoted() {
        assert_eq!(fields("a,b\r\nc,\"d, \"\"e\"\"\"\r\n"), [["a", "b"], ["c", "d, \"e\""]]);
        assert_eq!(fields("a,b"), [["a", "b"]]);
        assert_eq!(fields("a,\n,b\n"), [["a", ""], ["", "b"]]);
        assert_eq!(fields("a,"), [["a", ""]]);
        assert_eq!(fields("say \"so\",x\n"), [["say \"so\"", "x"]]);
        assert_eq!(fields("\n \n"), [[""; 0]; 0]);
    }

    #[test]
    fn lines_are_counted_through_quoted_ones() {
        let found = rows("h\n\"two\nlines\",x\nlast").unwrap();
        assert_eq!(found.iter().map(|row| row.line).collect::<Vec<_>>(), [1, 2, 4]);
        assert_eq!(found[1].fields, ["two\nlines", "x"]);
        assert_eq!(rows("a\n\"b").unwrap_err(), "line 2: a quote is never closed");
        assert_eq!(rows("\"a\"b\n").unwrap_err(), "line 1: 'b' after a closing quote; expected a comma");
    }
}
