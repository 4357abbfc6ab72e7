//! The fuzz finds the known way to be wrong, which public test vectors do not: a checker that linearizes a
//! write of the value that is there already at once, as if it were a read.

#[path = "../../tests/random/mod.rs"]
mod random;

use super::{Options, Verdict, check};
use random::{Machine, arbitrary, brute_force};

#[test]
fn the_fuzz_finds_the_unsound_checker() {
    let unsound = Options { same_write_is_pure: true, revisions: false, ..Options::default() };
    let sound = Options { same_write_is_pure: false, ..unsound };
    let mut wrong = 0;
    for seed in 0..20_000 {
        let operations = arbitrary(&mut fastrand::Rng::with_seed(seed), false);
        let expected = brute_force(&operations, &Machine::register());
        let says = |options: &Options| check(&operations, options) == Verdict::Valid;
        assert_eq!(says(&sound), expected, "seed {seed}");
        wrong += u32::from(says(&unsound) != expected);
    }
    assert!(wrong > 10, "the fuzz saw only {wrong} wrong verdicts of an unsound checker");
}
