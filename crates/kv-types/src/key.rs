//! Keys, values and names that are known to be within their bounds once they exist.

use std::fmt;

use bytes::Bytes;

use crate::limits::{MAX_KEY_BYTES, MAX_NAMESPACE_NAME_BYTES, MAX_VALUE_BYTES};
use crate::{Failure, Reason};

/// A key: 1 byte to [`MAX_KEY_BYTES`].
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Bytes);

impl Key {
    /// Checks the bounds: `EMPTY_KEY` or `LIMIT_KEY`.
    pub fn new(bytes: impl Into<Bytes>) -> Result<Self, Failure> {
        let bytes = bytes.into();
        if bytes.is_empty() {
            return Err(Failure::new(Reason::EmptyKey, "the key is empty; a key has at least one byte"));
        }
        if bytes.len() > MAX_KEY_BYTES {
            let message = format!("the key has {} bytes; at most {MAX_KEY_BYTES} are allowed", bytes.len());
            return Err(Failure::new(Reason::LimitKey, message).with("limit_bytes", MAX_KEY_BYTES));
        }
        Ok(Self(bytes))
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

/// A value: up to [`MAX_VALUE_BYTES`], possibly empty.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Value(Bytes);

impl Value {
    /// Checks the bound: `LIMIT_VALUE`.
    pub fn new(bytes: impl Into<Bytes>) -> Result<Self, Failure> {
        let bytes = bytes.into();
        if bytes.len() > MAX_VALUE_BYTES {
            let message =
                format!("the value has {} bytes; at most {MAX_VALUE_BYTES} are allowed", bytes.len());
            return Err(Failure::new(Reason::LimitValue, message).with("limit_bytes", MAX_VALUE_BYTES));
        }
        Ok(Self(bytes))
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    /// The bytes, owned.
    pub fn into_bytes(self) -> Bytes {
        self.0
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// The name of a namespace: lower-case letters, digits, `-`, `_` and `.`, beginning with a letter.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamespaceName(String);

impl NamespaceName {
    /// Checks the form: `NAMESPACE_INVALID`.
    pub fn new(name: impl Into<String>) -> Result<Self, Failure> {
        let name = name.into();
        let fits = name.len() <= MAX_NAMESPACE_NAME_BYTES
            && name.starts_with(|c: char| c.is_ascii_lowercase())
            && name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.'));
        if fits {
            return Ok(Self(name));
        }
        Err(Failure::new(
            Reason::NamespaceInvalid,
            format!(
                "`{}` is no name for a namespace: 1 to {MAX_NAMESPACE_NAME_BYTES} lower-case letters, digits, '-', '_' or '.', beginning with a letter",
                name.escape_debug()
            ),
        ))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NamespaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_values_hold_their_bounds() {
        assert_eq!(Key::new(Bytes::new()).map_err(|e| e.reason), Err(Reason::EmptyKey));
        assert!(Key::new(vec![0; MAX_KEY_BYTES]).is_ok());
        assert_eq!(Key::new(vec![0; MAX_KEY_BYTES + 1]).map_err(|e| e.reason), Err(Reason::LimitKey));
        assert!(Value::new(Bytes::new()).is_ok());
        assert!(Value::new(vec![0; MAX_VALUE_BYTES]).is_ok());
        assert_eq!(Value::new(vec![0; MAX_VALUE_BYTES + 1]).map_err(|e| e.reason), Err(Reason::LimitValue));
    }

    #[test]
    fn names_are_plain() {
        let longest = "a".repeat(MAX_NAMESPACE_NAME_BYTES);
        for right in ["bank", "a", "a-b_c.9", longest.as_str()] {
            assert!(NamespaceName::new(right).is_ok(), "{right}");
        }
        for wrong in ["", "Bank", "9a", "a b", "a/b", "ü", &"a".repeat(MAX_NAMESPACE_NAME_BYTES + 1)] {
            assert_eq!(
                NamespaceName::new(wrong).map_err(|e| e.reason),
                Err(Reason::NamespaceInvalid),
                "{wrong}"
            );
        }
    }
}
