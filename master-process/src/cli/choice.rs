//! Values that are one of a few words.

use super::error::Parsed;

/// The value that belongs to the word `text`.
pub(super) fn parse<T: Copy>(text: &str, choices: &[(&str, T)]) -> Parsed<T> {
    match choices.iter().find(|(word, _)| *word == text) {
        Some((_, value)) => Ok(*value),
        None => Err(format!("is not one of its values; give {}", list(choices)).into()),
    }
}

/// The words as a sentence has them: `a, b or c`.
fn list<T>(choices: &[(&str, T)]) -> String {
    let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
    match words.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        Some(_) | None => words.concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHOICES: &[(&str, u32)] = &[("auto", 0), ("shared", 1), ("off", 2)];

    #[test]
    fn a_word_gives_its_value() {
        assert_eq!(parse("shared", CHOICES), Ok(1));
    }

    #[test]
    fn garbage_is_told_the_words() {
        for garbage in ["", "Auto", "auto ", "shared,off", "1"] {
            let reason = parse(garbage, CHOICES).expect_err(garbage);
            assert_eq!(reason, "is not one of its values; give auto, shared or off");
        }
    }
}
