//! Rust source with the comments and the contents of literals blanked out, line for line, so that a search finds
//! code only.

use std::iter::Peekable;
use std::str::Chars;

/// The code of `source`; lines keep their numbers.
pub(crate) fn code_of(source: &str) -> String {
    let mut code = String::with_capacity(source.len());
    let mut chars = source.chars().peekable();
    let mut word = String::new();
    while let Some(char) = chars.next() {
        match char {
            '/' if chars.peek() == Some(&'/') => skip_line(&mut chars, &mut code),
            '/' if chars.peek() == Some(&'*') => skip_block(&mut chars, &mut code),
            '"' if is_raw(&word) => skip_raw(0, &mut chars, &mut code),
            '"' => skip_string(&mut chars, &mut code),
            '#' if is_raw(&word) => {
                let hashes = 1 + take_hashes(&mut chars);
                if chars.next_if_eq(&'"').is_some() {
                    skip_raw(hashes, &mut chars, &mut code);
                }
            }
            '\'' => skip_char(&mut chars, &mut code),
            other => code.push(other),
        }
        if char.is_alphanumeric() || char == '_' { word.push(char) } else { word.clear() }
    }
    code
}

fn is_raw(word: &str) -> bool {
    matches!(word, "r" | "br" | "cr")
}

fn take_hashes(chars: &mut Peekable<Chars<'_>>) -> usize {
    std::iter::from_fn(|| chars.next_if_eq(&'#')).count()
}

fn skip_line(chars: &mut Peekable<Chars<'_>>, code: &mut String) {
    while chars.next_if(|&char| char != '\n').is_some() {}
    code.push(' ');
}

fn skip_block(chars: &mut Peekable<Chars<'_>>, code: &mut String) {
    let (mut depth, mut last) = (1, '/');
    chars.next();
    while depth > 0 {
        let Some(char) = chars.next() else { return };
        match (last, char) {
            ('/', '*') => (depth, last) = (depth + 1, ' '),
            ('*', '/') => (depth, last) = (depth - 1, ' '),
            _ => last = char,
        }
        if char == '\n' {
            code.push('\n');
        }
    }
}

fn skip_string(chars: &mut Peekable<Chars<'_>>, code: &mut String) {
    code.push('"');
    while let Some(char) = chars.next() {
        match char {
            '"' => break,
            '\\' => code.extend(chars.next().filter(|&escaped| escaped == '\n')),
            '\n' => code.push('\n'),
            _ => {}
        }
    }
    code.push('"');
}

fn skip_raw(hashes: usize, chars: &mut Peekable<Chars<'_>>, code: &mut String) {
    code.push('"');
    while let Some(char) = chars.next() {
        if char == '"' && (0..hashes).all(|_| chars.next_if_eq(&'#').is_some()) {
            break;
        }
        if char == '\n' {
            code.push('\n');
        }
    }
    code.push('"');
}

/// A character literal, or a lifetime's tick, which is left alone.
fn skip_char(chars: &mut Peekable<Chars<'_>>, code: &mut String) {
    code.push('\'');
    let mut ahead = chars.clone();
    match (ahead.next(), ahead.next()) {
        (Some('\\'), _) => {
            chars.next();
            chars.next();
            while chars.next_if(|&char| char != '\'').is_some() {}
            chars.next();
        }
        (Some(_), Some('\'')) => {
            chars.next();
            chars.next();
        }
        _ => {}
    }
}

#[test]
fn only_code_is_left() {
    let source = "let a = \"loop \\\" {\"; // loop\nlet b = r#\"lo\"op\n\"#; /* a /* b */ loop\n*/ let c: &'a u8 = &b'\\'';\nlet d = '\"'; loop {}";
    let code = code_of(source);
    assert_eq!(code.lines().count(), source.lines().count());
    assert_eq!(code.matches("loop").count(), 1, "{code}");
    assert!(code.lines().last().expect("it has lines").contains("loop {}"), "{code}");
    assert!(code.contains("&'a u8"), "{code}");
}
