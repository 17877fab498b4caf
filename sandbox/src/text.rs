//! Text that a guest wrote, made fit for a person's terminal.

use std::path::Path;

/// `text` on one line of a terminal: every character that a terminal would obey, control
/// characters and those that turn the direction of text, becomes `?`.
///
/// ```
/// assert_eq!(flashpan::text::plain("a\x1b[2Jb\n"), "a?[2Jb?");
/// ```
#[must_use]
pub fn plain(text: &str) -> String {
    text.chars().map(harmless).collect()
}

fn harmless(c: char) -> char {
    if c.is_control() || is_directional(c) {
        '?'
    } else {
        c
    }
}

/// `text` on one line with nothing in it that a terminal would obey: control
/// characters and the directional marks of Unicode become `?`, and everything
/// after `max` characters is cut with an ellipsis.
pub(crate) fn one_line(text: &str, max: usize) -> String {
    let mut out = String::with_capacity(text.len().min(max));
    for (count, c) in text.trim().chars().enumerate() {
        if count == max {
            out.push('…');
            break;
        }
        out.push(match c {
            '\n' | '\r' | '\t' => ' ',
            c => harmless(c),
        });
    }
    out
}

/// A path for a message. A guest itself may have chosen it if it is from a listing, and
/// a part of one on this machine if it is from a copied tree.
pub(crate) fn shown_path(path: &Path) -> String {
    one_line(&path.to_string_lossy(), 300)
}

/// Whether a character ends a line, or changes the direction of what follows it, which
/// lets a message show something else than it says.
fn is_directional(c: char) -> bool {
    matches!(
        c,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    )
}

#[cfg(test)]
mod tests {
    use super::{one_line, plain};

    #[test]
    fn escape_sequences_lose_their_power() {
        assert_eq!(
            one_line("\x1b]0;title\x07 red\u{202e}", 80),
            "?]0;title? red?"
        );
    }

    #[test]
    fn every_character_that_steers_is_shown_and_not_obeyed() {
        assert_eq!(plain("a\n\u{61c}\u{2028}\u{2069}\u{9b}é"), "a?????é");
    }

    #[test]
    fn lines_are_joined_and_long_text_is_cut() {
        assert_eq!(one_line("a\nb\r\n", 80), "a b");
        assert_eq!(one_line("abcdef", 3), "abc…");
    }
}
