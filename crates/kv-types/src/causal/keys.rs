//! The secret under which a cluster authenticates the contexts that its clients hold. A context names dots,
//! and records are filled with what it names: one that a client made up could take away values of keys that
//! it has never read. So a context carries a keyed hash, and a node believes what the hash proves.
//!
//! The catalogue keeps the keys, and no call returns them.

use std::fmt;

/// The keyed hash of a context, bytes.
pub(super) const MAC_BYTES: usize = 16;
/// As many keys may be in force at once: the newest makes contexts, and the one before it still reads them.
pub const CONTEXT_KEYS: usize = 2;

/// A secret of a cluster, and the number by which a context names it.
#[derive(Clone, PartialEq, Eq)]
pub struct ContextKey {
    id: u32,
    secret: [u8; 32],
}

impl ContextKey {
    /// The key of this secret, which has to be random.
    pub fn new(secret: [u8; 32]) -> Self {
        let derived = blake3::derive_key("quorate: the id of a key of causal contexts", &secret);
        // 0 is the id of no key.
        let [a, b, c, d, ..] = derived;
        Self { id: u32::from_be_bytes([a, b, c, d]).max(1), secret }
    }

    /// How contexts name it.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// For the catalogue alone.
    pub fn secret(&self) -> &[u8; 32] {
        &self.secret
    }

    /// Of a context's bytes, and of the key that it is about (BLAKE3, keyed).
    fn mac(&self, body: &[u8], key: &[u8]) -> [u8; MAC_BYTES] {
        let mut hasher = blake3::Hasher::new_keyed(&self.secret);
        hasher.update(body).update(key);
        let mut mac = [0; MAC_BYTES];
        hasher.finalize_xof().fill(&mut mac);
        mac
    }
}

/// Without the secret.
impl fmt::Debug for ContextKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ContextKey({:08x})", self.id)
    }
}

/// Of a cluster that was founded before there were keys: a checksum, and no proof.
static NONE: ContextKey = ContextKey { id: 0, secret: [0; 32] };

/// The keys of a cluster, the newest last; at most [`CONTEXT_KEYS`]. None before the cluster is initialized.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ContextKeys(Vec<ContextKey>);

impl ContextKeys {
    /// Takes the newest ones of them; the last is the newest.
    pub fn new(keys: impl IntoIterator<Item = ContextKey>) -> Self {
        let mut keys: Vec<ContextKey> = keys.into_iter().collect();
        keys.drain(..keys.len().saturating_sub(CONTEXT_KEYS));
        Self(keys)
    }

    /// All of them, the newest last.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &ContextKey> {
        self.0.iter()
    }

    /// The id of the key that new contexts are made with.
    pub(super) fn newest(&self) -> u32 {
        self.0.last().unwrap_or(&NONE).id
    }

    /// The keyed hash of a context under the key of that id; none if this cluster has no such key.
    pub(super) fn mac(&self, id: u32, body: &[u8], key: &[u8]) -> Option<[u8; MAC_BYTES]> {
        let found = match self.0.is_empty() {
            true => Some(&NONE).filter(|none| none.id == id),
            false => self.0.iter().find(|key| key.id == id),
        };
        found.map(|found| found.mac(body, key))
    }
}

/// Whether two keyed hashes are equal, in a time that does not tell how much of them is.
pub(super) fn are_equal(a: &[u8; MAC_BYTES], b: &[u8; MAC_BYTES]) -> bool {
    a.iter().zip(b).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_never_shown() {
        let key = ContextKey::new([0xab; 32]);
        let shown = format!("{:?} {:?}", key, ContextKeys::new([key.clone()]));
        assert!(!shown.contains("171") && !shown.contains("ab, ab") && !shown.contains("abab"), "{shown}");
    }

    #[test]
    fn only_the_newest_keys_count() {
        let key = |n| ContextKey::new([n; 32]);
        let keys = ContextKeys::new([key(1), key(2), key(3)]);
        assert_eq!(keys.newest(), key(3).id());
        let mac = |keys: &ContextKeys, n| keys.mac(key(n).id(), b"body", b"k");
        assert!(mac(&keys, 1).is_none() && mac(&keys, 2).is_some() && mac(&keys, 3).is_some());
        assert_ne!(mac(&keys, 2), mac(&keys, 3));
        // What has no key proves nothing once there is one.
        assert!(keys.mac(0, b"body", b"k").is_none());
        assert!(ContextKeys::default().mac(0, b"body", b"k").is_some());
        assert!(ContextKeys::default().mac(key(1).id(), b"body", b"k").is_none());
    }

    #[test]
    fn every_byte_counts() {
        let keys = ContextKeys::new([ContextKey::new([7; 32])]);
        let mac = |body: &[u8], key: &[u8]| keys.mac(keys.newest(), body, key).unwrap();
        let first = mac(b"body", b"key");
        assert!(are_equal(&first, &mac(b"body", b"key")));
        for (body, key) in
            [(&b"bodi"[..], &b"key"[..]), (b"body", b"kez"), (b"body", b"key\0"), (b"bod", b"key")]
        {
            assert!(!are_equal(&first, &mac(body, key)));
        }
        (0..MAC_BYTES).for_each(|at| {
            let mut other = first;
            other[at] ^= 1;
            assert!(!are_equal(&first, &other));
        });
    }
}
