//! A number and what it counts, in words: one way for every message of every crate, so that none of them says
//! `1 keys`.

use std::fmt;

/// What is counted, in the singular where it is one.
pub fn noun<'a, N: PartialEq + From<u8>>(number: N, one: &'a str, several: &'a str) -> &'a str {
    if number == N::from(1) { one } else { several }
}

/// A number and what it counts: `1 key`, `2 keys`.
pub fn counted<N: Copy + fmt::Display + PartialEq + From<u8>>(number: N, one: &str, several: &str) -> String {
    format!("{number} {}", noun(number, one, several))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_said_in_the_singular() {
        let keys = |number: u64| counted(number, "key", "keys");
        assert_eq!([0, 1, 2, 21].map(keys), ["0 keys", "1 key", "2 keys", "21 keys"]);
        assert_eq!((noun(1_usize, "is", "are"), noun(0_u8, "is", "are")), ("is", "are"));
    }
}
