//! Options of a benchmark: words with their values.

use anyhow::{Result, bail};

/// Hands each option with its value to `take`, which says whether it knows it.
pub(crate) fn read(
    words: &[String],
    mut take: impl FnMut(&str, &str) -> Result<bool>,
) -> Result<()> {
    for pair in words.chunks(2) {
        let [word, value] = pair else {
            bail!("{pair:?} needs a value");
        };
        if !take(word, value)? {
            bail!("{word} is not known");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_option_has_a_value_and_is_known() {
        let read = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(ToString::to_string).collect();
            let mut taken = Vec::new();
            read(&words, |word, value| {
                taken.push(format!("{word}={value}"));
                Ok(word == "--a")
            })
            .map(|()| taken)
            .map_err(|error| error.to_string())
        };
        assert_eq!(read(&["--a", "1", "--a", "2"]).unwrap(), ["--a=1", "--a=2"]);
        assert!(read(&["--a"]).unwrap_err().contains("needs a value"));
        assert_eq!(read(&["--b", "1"]).unwrap_err(), "--b is not known");
    }
}
