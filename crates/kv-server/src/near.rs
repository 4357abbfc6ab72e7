//! Near misses: what was probably meant. Small edit distances only, so that a suggestion is worth reading.

/// Candidates whose spelling is near, nearest first, at most `count`.
pub(crate) fn nearest<'a>(
    word: &str,
    candidates: impl IntoIterator<Item = &'a str>,
    count: usize,
) -> Vec<&'a str> {
    let bound = bound(word);
    let mut near: Vec<(usize, &str)> = candidates
        .into_iter()
        .map(|candidate| (distance(word, candidate), candidate))
        .filter(|(distance, _)| *distance <= bound)
        .collect();
    near.sort_unstable();
    near.into_iter().take(count).map(|(_, candidate)| candidate).collect()
}

/// The candidates whose length alone does not rule them out: cheap, so that few are left to compare.
pub(crate) fn within_reach<'a>(
    word: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> impl Iterator<Item = &'a str> {
    let (length, bound) = (word.chars().count(), bound(word));
    candidates.into_iter().filter(move |candidate| candidate.chars().count().abs_diff(length) <= bound)
}

/// The largest distance at which a word is near.
fn bound(word: &str) -> usize {
    (word.chars().count() / 3).clamp(1, 3)
}

/// Levenshtein's distance in characters.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, a) in a.chars().enumerate() {
        // `diagonal` is the cell above and to the left of the one being filled.
        let mut diagonal = i;
        let mut left = i + 1;
        if let Some(first) = row.first_mut() {
            *first = left;
        }
        for (b, cell) in b.iter().zip(row.iter_mut().skip(1)) {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = *cell;
            left = replaced.min(left + 1).min(*cell + 1);
            *cell = left;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_levenshteins() {
        for (a, b, wanted) in
            [("", "", 0), ("", "abc", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2), ("bank", "bank", 0)]
        {
            assert_eq!((distance(a, b), distance(b, a)), (wanted, wanted), "{a} {b}");
        }
    }

    #[test]
    fn length_alone_rules_nothing_near_out() {
        let words = ["cart", "carts", "ca", "car", "shopping-cart"];
        assert_eq!(within_reach("cart", words).collect::<Vec<_>>(), ["cart", "carts", "car"]);
        assert_eq!(nearest("cart", words, 9), nearest("cart", within_reach("cart", words), 9));
    }

    #[test]
    fn only_near_words_are_offered_nearest_first() {
        let words = ["heartbeat", "election_min", "election_max"];
        assert_eq!(nearest("heartbeta", words, 3), ["heartbeat"]);
        assert_eq!(nearest("election_mix", words, 3), ["election_max", "election_min"]);
        assert!(nearest("zz", words, 3).is_empty());
    }
}
