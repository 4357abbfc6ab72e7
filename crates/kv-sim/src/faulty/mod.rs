//! A disk that loses what was not synced or hangs, a lower tier that stalls, a clock that lies, and the
//! socket that commands them: the environment of `kvd-faulty`, which is otherwise the program that `kvd` is.

pub mod clock;
pub mod control;
pub mod disk;
pub mod tier;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// A lock whose holder panicked is taken over: every critical section here leaves whole values behind.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gives this process a seeded bug. Only a build with `--cfg quorate_mutants` has any.
pub fn choose_mutant(name: &str) -> Result<(), String> {
    #[cfg(quorate_mutants)]
    {
        kv_types::mutants::choose(name)
    }
    #[cfg(not(quorate_mutants))]
    {
        Err(format!(
            "this build has no seeded bugs, so not `{name}` either; `cargo xtask mutants` makes one that has"
        ))
    }
}
