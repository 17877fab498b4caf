//! Arguments as one text for a POSIX shell.

use std::borrow::Cow;

/// What a shell gives a meaning to anywhere in a word.
const SPECIAL: &str = "\\'\"`${[|&;<>()*?!";

/// Words that a shell gives a meaning to where it expects a command, besides
/// those with a [`SPECIAL`] character.
const RESERVED: [&str; 19] = [
    "case", "coproc", "do", "done", "elif", "else", "esac", "fi", "for", "function", "if", "in",
    "select", "then", "time", "until", "while", "}", "]]",
];

/// Joins arguments with blanks into one text from which a POSIX shell gets the
/// same arguments.
///
/// Single special characters get a backslash, words with blanks, tabs or line
/// breaks single quotes. NUL cannot be in an argument; it stays as it is.
///
/// ```
/// use flashpan::api::shell_quote_args;
///
/// assert_eq!(shell_quote_args(&["sh", "-c", "echo $HOME"]), "sh -c 'echo $HOME'");
/// assert_eq!(shell_quote_args(&["echo", "don't", ""]), r"echo don\'t ''");
/// ```
#[must_use]
pub fn shell_quote_args<S: AsRef<str>>(args: &[S]) -> String {
    let words = args.iter().enumerate();
    let words: Vec<_> = words
        .map(|(index, arg)| quote(arg.as_ref(), index == 0))
        .collect();
    words.join(" ")
}

fn quote(word: &str, first: bool) -> Cow<'_, str> {
    // As the first word, `A=1` is an assignment and `if` begins a clause.
    let command = first && (word.contains('=') || RESERVED.contains(&word));
    if word.is_empty() || command || word.contains([' ', '\t', '\n']) {
        return format!("'{}'", word.replace('\'', r"'\''")).into();
    }
    // Only at the beginning of a word: a home directory, a comment.
    let leading = word.starts_with(['~', '#']);
    if !leading && !word.contains(|c| SPECIAL.contains(c)) {
        return word.into();
    }
    let mut quoted = String::with_capacity(word.len() + 2);
    for (at, c) in word.char_indices() {
        if SPECIAL.contains(c) || (at == 0 && leading) {
            quoted.push('\\');
        }
        quoted.push(c);
    }
    quoted.into()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn words_look_as_plain_as_they_can() {
        for (args, text) in [
            (vec![], ""),
            (vec!["echo"], "echo"),
            (vec!["echo", "hello"], "echo hello"),
            (vec![""], "''"),
            (vec!["hello goodbye"], "'hello goodbye'"),
            (vec!["don't"], r"don\'t"),
            (vec!["don't you"], r"'don'\''t you'"),
            (
                vec!["sh", "-lc", "echo hello world"],
                "sh -lc 'echo hello world'",
            ),
            (vec!["a", "*.rs", "$X", "~", "a~"], r"a \*.rs \$X \~ a~"),
            (vec!["a", "}", "]", "=", "^", "%", "a#b"], "a } ] = ^ % a#b"),
            (vec!["a", "#b"], r"a \#b"),
            (vec!["A=1", "A=1"], "'A=1' A=1"),
            (vec!["if", "if"], "'if' if"),
        ] {
            assert_eq!(shell_quote_args(&args), text);
        }
    }

    /// What a shell makes of a text after `printf`.
    fn through_a_shell(text: &str) -> Vec<String> {
        let script = format!("printf '%s\\0' {text}");
        let output = Command::new("/bin/sh")
            .arg("-c")
            .arg(script)
            .output()
            .unwrap();
        let output = String::from_utf8(output.stdout).unwrap();
        output.split_terminator('\0').map(str::to_owned).collect()
    }

    /// What a shell takes for the command of a text.
    fn command_of(text: &str) -> Option<i32> {
        let output = Command::new("/bin/sh")
            .arg("-c")
            .arg(text)
            .env("PATH", "/nonexistent")
            .output();
        output.unwrap().status.code()
    }

    #[test]
    fn the_first_word_is_a_command_whatever_it_looks_like() {
        for word in RESERVED.iter().chain(&["A=1", "#x", "~", "{", "!", "[["]) {
            // 127: command not found.
            assert_eq!(command_of(&shell_quote_args(&[*word])), Some(127), "{word}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_shell_gets_the_same_arguments(
            args in proptest::collection::vec("[\u{1}-\u{7f}äß€]{0,8}|[ '\"\\\\$#~!a\n]{0,6}", 1..8),
        ) {
            prop_assert_eq!(through_a_shell(&shell_quote_args(&args)), args);
        }
    }
}
