//! Wildcards: `*` is any run of characters, `?` any one.

/// Whether `text` is what `pattern` stands for, from end to end. Takes time in the product of their lengths at most.
pub(super) fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut at, mut seen) = (0, 0);
    // The last star, and how much of the text it stands for so far.
    let mut retry: Option<(usize, usize)> = None;
    while let Some(byte) = text.get(seen) {
        match pattern.get(at) {
            Some(b'*') => {
                retry = Some((at, seen));
                at += 1;
            }
            Some(wanted) if *wanted == b'?' || wanted == byte => {
                at += 1;
                seen += 1;
            }
            _ => match retry {
                Some((star, end)) => {
                    retry = Some((star, end + 1));
                    (at, seen) = (star + 1, end + 1);
                }
                None => return false,
            },
        }
    }
    pattern.iter().skip(at).all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_and_question_marks_match_from_end_to_end() {
        for (pattern, text, expected) in [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("a*", "a", true),
            ("kms:generatedatakey*", "kms:generatedatakeywithoutplaintext", true),
            ("kms:generatedatakey", "kms:generatedatakeywithoutplaintext", false),
            ("*b*c", "abcbc", true),
            ("*b*c", "abcb", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("a**", "abc", true),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} on {text}");
        }
    }

    #[test]
    fn many_stars_take_no_exponential_time() {
        let text = "a".repeat(4096);
        assert!(!matches(&format!("{}b", "a*".repeat(200)), &text));
    }
}
