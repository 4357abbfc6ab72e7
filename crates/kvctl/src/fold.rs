//! Long lines for a screen of eighty columns: broken between words, what follows below where it began. Lines
//! that are typed are never broken.

/// Columns of the narrowest screen that is usual.
pub(crate) const WIDTH: usize = 80;
/// A description that begins further right than this is not kept below its beginning.
const RIGHTMOST: usize = 44;

/// The text with each of its lines broken.
pub(crate) fn fold(text: &str) -> String {
    let lines: Vec<String> = text.lines().map(|line| broken(line, hanging(line))).collect();
    let end = if text.ends_with('\n') { "\n" } else { "" };
    lines.join("\n") + end
}

/// The words of an error: those of its message are broken. What explains a line to be typed goes below it.
pub(crate) fn fold_error(text: &str) -> String {
    /// What the lines of a message after its first one begin with.
    const MARGIN: usize = 7;
    let line = |line: &str| {
        let is_typed = line.starts_with("  try: ") || line.starts_with("       kvctl ");
        match line.rsplit_once("   (") {
            _ if width(line) <= WIDTH => line.to_owned(),
            Some((typed, why)) if is_typed => {
                let typed = typed.trim_end();
                let whole = format!("{typed}   ({why}");
                if width(&whole) <= WIDTH {
                    return whole;
                }
                format!("{typed}\n{}", broken(&format!("{:MARGIN$}  ({why}", ""), MARGIN + 2))
            }
            _ if is_typed => line.to_owned(),
            _ => broken(line, MARGIN),
        }
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// One line, broken where it is too long; the later ones begin at this column.
fn broken(line: &str, column: usize) -> String {
    if width(line) <= WIDTH || plain(line).trim_start().starts_with("kvctl ") {
        return line.to_owned();
    }
    let (mut folded, mut at) = (String::new(), 0);
    // What is typed stands at the end of a line, and in one piece.
    // In a bracket, with the bracket; what stands in quotes is a word of a sentence.
    let begins = [" kvctl ", " (kvctl "].into_iter().filter_map(|begin| line.find(begin)).min();
    let typed = begins.map_or(line.len(), |blank| blank + 1);
    let (words, typed) = line.split_at(typed);
    for piece in words.split_inclusive(' ').chain([typed]).filter(|piece| !piece.is_empty()) {
        if at > column && at + width(piece.trim_end()) > WIDTH {
            folded.truncate(folded.trim_end().len());
            folded.push('\n');
            folded.extend(std::iter::repeat_n(' ', column));
            at = column;
        }
        folded.push_str(piece);
        at += width(piece);
    }
    folded
}

/// Where the later lines begin: below a description, which two blanks part from what it describes.
fn hanging(line: &str) -> usize {
    let line = plain(line);
    let margin = line.len() - line.trim_start().len();
    let described = line.trim_start().find("  ").map(|end| {
        let rest = line.trim_start().get(end..).unwrap_or_default();
        margin + line.trim_start().get(..end).map_or(0, |name| name.chars().count()) + rest.len()
            - rest.trim_start().len()
    });
    described.filter(|column| *column <= RIGHTMOST).unwrap_or(margin)
}

/// Columns, without what only colours.
fn width(text: &str) -> usize {
    plain(text).chars().count()
}

fn plain(text: &str) -> String {
    let mut parts = text.split("\u{1b}[");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |plain, part| plain + part.split_once('m').map_or(part, |(_, rest)| rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptions_hang_and_lines_that_are_typed_are_whole() {
        let option = "  -e, --endpoint <ADDRESS>  Node to talk to, host:port (repeat for several). One alone is the only one asked.";
        let folded = fold(option);
        let lines: Vec<&str> = folded.lines().collect();
        assert_eq!(lines.len(), 2, "{folded}");
        assert!(lines.iter().all(|line| line.chars().count() <= WIDTH), "{folded}");
        assert!(lines[1].starts_with(&format!("{:28}", "")) && !lines[1].starts_with(&format!("{:29}", "")));
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(words(&folded), words(option));
        let example = format!("  kvctl bench {}", "--workload put ".repeat(9).trim_end());
        assert_eq!(fold(&example), example);
        assert_eq!(fold("short\n\nlines\n"), "short\n\nlines\n");
        let deed = "cut 12 links (both ways). Verified: 12 of 12 probes blocked.    heal: kvctl fault heal";
        assert_eq!(fold(deed), deed.replace(" kvctl", "\nkvctl"), "what is typed is in one piece");
        let within =
            format!("in force now, with what was before: {} (kvctl fault list), n1 / n2", "x".repeat(30));
        assert_eq!(fold(&within), within.replace(" (kvctl", "\n(kvctl"));
        // Colours have no width.
        let coloured = format!("\u{1b}[1m{}\u{1b}[0m", "x".repeat(WIDTH));
        assert_eq!(fold(&coloured), coloured);
        let long = "y".repeat(2 * WIDTH);
        assert_eq!(fold(&long), long, "there is nowhere to break it");
    }

    #[test]
    fn of_an_error_the_words_are_broken_and_what_is_typed_is_not() {
        let typed = format!("  try: kvctl -e 127.0.0.1:7101 put -n bank {} 1", "k".repeat(60));
        let text = format!(
            "{}\n       applied: no    reason: X\n{typed}   (again: nothing was applied)",
            "word ".repeat(30).trim_end()
        );
        let folded = fold_error(&text);
        let lines: Vec<&str> = folded.lines().collect();
        assert!(lines[1].starts_with("       word") && lines[0].chars().count() <= WIDTH, "{folded}");
        assert!(lines.contains(&typed.as_str()), "{folded}");
        assert_eq!(lines.last(), Some(&"         (again: nothing was applied)"));
        // What stood below the explanations of others goes nearer where that is enough.
        let padded = format!("  try: kvctl ns list{}   (which there are)", " ".repeat(60));
        assert_eq!(fold_error(&padded), "  try: kvctl ns list   (which there are)");
    }
}
