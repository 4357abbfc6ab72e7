//! Randomness: seeded once from the system in production, from a given number in a simulation.

use std::sync::{Arc, Mutex, PoisonError};

/// A shared random generator. Not for secrets, but for [`Entropy::secret`].
#[derive(Clone)]
pub struct Entropy {
    rng: Arc<Mutex<fastrand::Rng>>,
    /// Secrets come from the operating system, and not from the seed.
    system: bool,
}

impl Entropy {
    /// Seeded by the operating system.
    pub fn system() -> Self {
        // Without the system's entropy two nodes could mint the same incarnation; the clock is no substitute.
        let seed = getrandom::u64().unwrap_or_else(|_| fastrand::u64(..));
        Self { system: true, ..Self::seeded(seed) }
    }

    /// The same seed gives the same numbers, and the same secrets: for simulations.
    pub fn seeded(seed: u64) -> Self {
        Self { rng: Arc::new(Mutex::new(fastrand::Rng::with_seed(seed))), system: false }
    }

    /// 32 bytes that cannot be guessed, unless this is a simulation.
    ///
    /// Errors: the operating system has none.
    pub fn secret(&self) -> Result<[u8; 32], std::io::Error> {
        let mut secret = [0; 32];
        match self.system {
            true => getrandom::fill(&mut secret).map_err(|error| std::io::Error::other(error.to_string()))?,
            false => self.with(|rng| rng.fill(&mut secret)),
        }
        Ok(secret)
    }

    /// 64 random bits.
    pub fn next_u64(&self) -> u64 {
        self.with(|rng| rng.u64(..))
    }

    /// 128 random bits.
    pub fn next_u128(&self) -> u128 {
        self.with(|rng| rng.u128(..))
    }

    /// A number below `bound`; 0 when `bound` is 0.
    pub fn below(&self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.with(|rng| rng.u64(..bound)) }
    }

    /// An independent generator, for a part whose draws must not shift those of others.
    pub fn fork(&self) -> Self {
        Self { system: self.system, ..Self::seeded(self.next_u64()) }
    }

    fn with<T>(&self, draw: impl FnOnce(&mut fastrand::Rng) -> T) -> T {
        draw(&mut self.rng.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl std::fmt::Debug for Entropy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Entropy")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_numbers() {
        let draw = |entropy: Entropy| {
            (entropy.next_u64(), entropy.next_u128(), entropy.below(10), entropy.fork().next_u64())
        };
        assert_eq!(draw(Entropy::seeded(7)), draw(Entropy::seeded(7)));
        assert_ne!(draw(Entropy::seeded(7)), draw(Entropy::seeded(8)));
        assert_ne!(Entropy::system().next_u128(), Entropy::system().next_u128());
        assert_eq!(Entropy::seeded(1).below(0), 0);
        let secret = |entropy: Entropy| entropy.secret().unwrap();
        assert_eq!(secret(Entropy::seeded(7)), secret(Entropy::seeded(7)));
        // A secret of the system does not follow from any seed.
        let system = Entropy { system: true, ..Entropy::seeded(7) };
        assert_ne!(secret(system.fork()), secret(system));
        assert_ne!(secret(Entropy { system: true, ..Entropy::seeded(7) }), secret(Entropy::seeded(7)));
    }
}
