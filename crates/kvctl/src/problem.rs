//! An error as people read it, in three parts: what happened and where it was seen; applied or not, why,
//! which request; what to type next.

use std::fmt;

use kv_client::Error;
use kv_lab::LabError;
use kv_types::{Applied, Failure, Reason, WriteId};
use serde_json::{Value, json};

use crate::exit::Exit;

/// A command that did not do what it was asked.
#[derive(Debug, Clone)]
pub(crate) struct Problem {
    pub(crate) message: String,
    /// Of an operation: applied or not, why, which request.
    pub(crate) failure: Option<Box<Failure>>,
    /// Command lines, each with what it would do.
    pub(crate) tries: Vec<(String, String)>,
    pub(crate) exit: Exit,
    /// Of a command that changes nothing: that nothing was applied goes without saying.
    pub(crate) of_read: bool,
    /// Of a write that did not come as far as an operation that could fail: nothing was sent.
    pub(crate) not_sent: bool,
}

impl Problem {
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { message, failure: None, tries: Vec::new(), exit, of_read: false, not_sent: false }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// Suggests a command line.
    pub(crate) fn try_this(mut self, line: impl Into<String>, why: impl Into<String>) -> Self {
        self.tries.push((line.into(), why.into()));
        self
    }

    /// The same of something that was sent before under this id, if it was: what fails now says nothing of
    /// the first time.
    pub(crate) fn of_resent(self, id: Option<WriteId>) -> Self {
        let (Some(id), Some(failure)) = (id, &self.failure) else { return self };
        let message = format!("what became of it when it was sent first is not known; {}", failure.message);
        let open = Failure::new(Reason::ResultUnknown, message).of_request(id.request_id);
        open.with("last_reason", failure.reason).with("write_id", id).into()
    }

    pub(crate) fn json(&self) -> Value {
        let mut error = json!({ "message": self.message, "exit": self.exit as u8 });
        if let (Some(failure), Some(fields)) = (&self.failure, error.as_object_mut()) {
            fields.insert("reason".into(), failure.reason.code_name().into());
            fields.insert("applied".into(), failure.applied.as_str().into());
            fields.insert("request_id".into(), failure.request_id.map(|id| id.to_string()).into());
            fields.insert("details".into(), failure.details.iter().cloned().collect());
        }
        if let Some(fields) = error.as_object_mut() {
            if self.not_sent {
                fields.insert("applied".into(), Applied::No.as_str().into());
            }
            fields.insert("try".into(), self.tries.iter().map(|(line, _)| line.as_str()).collect());
        }
        json!({ "error": error })
    }
}

impl fmt::Display for Problem {
    /// Without the word `error:`, which may have a colour.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines = self.message.lines();
        write!(f, "{}", lines.next().unwrap_or_default())?;
        for line in lines {
            write!(f, "\n       {line}")?;
        }
        if self.not_sent {
            write!(f, "\n       applied: {}", Applied::No)?;
        }
        if let Some(failure) = &self.failure {
            let applied = match self.of_read {
                true => String::new(),
                false => format!("applied: {}    ", failure.applied),
            };
            write!(f, "\n       {applied}reason: {}", failure.reason)?;
            if let Some(id) = failure.request_id {
                write!(f, "    request: {id}")?;
            }
            if let Some(attempts) = failure.detail("attempts") {
                write!(f, "    attempts: {attempts}")?;
            }
        }
        let width = self.tries.iter().map(|(line, _)| line.chars().count()).max().unwrap_or(0);
        for (i, (line, why)) in self.tries.iter().enumerate() {
            let label = if i == 0 { "  try: " } else { "       " };
            if why.is_empty() {
                write!(f, "\n{label}{line}")?;
            } else {
                write!(f, "\n{label}{line:width$}   ({why})")?;
            }
        }
        Ok(())
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        let mut message = failure.message.clone();
        if let Some(last) = failure.detail("last_reason") {
            message = format!("{message}; the last attempt ended with {last}");
        }
        if let Some(why) = failure.detail("gave_up") {
            message = format!("{message}; it was given up before its deadline: {why}");
        }
        let exit = Exit::of(&failure);
        Self { failure: Some(Box::new(failure)), ..Self::new(exit, message) }
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        Self::from(error.failure().clone())
    }
}

impl From<LabError> for Problem {
    fn from(error: LabError) -> Self {
        let exit = match error.exit_code() {
            2 => Exit::Usage,
            3 => Exit::Unavailable,
            code => match Exit::from_code(Some(code.into())) {
                exit if exit.is_of_signal() => exit,
                _ => Exit::Refused,
            },
        };
        // The lab's words may end with what to type next.
        let text = error.to_string();
        match text.rsplit_once("\n  try: ") {
            Some((message, line)) => Self::new(exit, message).try_this(line, ""),
            None => Self::new(exit, text),
        }
    }
}

impl From<std::io::Error> for Problem {
    fn from(error: std::io::Error) -> Self {
        // The reader of our output has read enough.
        let exit = if error.kind() == std::io::ErrorKind::BrokenPipe { Exit::Done } else { Exit::Refused };
        Self::new(exit, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_types::{ClientId, RequestId};

    #[test]
    fn an_error_has_three_parts() {
        let failure = Failure::new(
            Reason::NoQuorum,
            "bank cannot accept writes from n1: 2 of 5 voters reachable, 3 needed",
        )
        .of_request(RequestId { client_id: ClientId(0x5f2c_0000 << 96), seq: 41 });
        let problem = Problem::from(failure)
            .try_this("kvctl -e 127.0.0.1:7103 put -n bank alice 1", "n3 has a quorum")
            .try_this("kvctl put -n cart", "another");
        assert_eq!(
            problem.to_string(),
            "bank cannot accept writes from n1: 2 of 5 voters reachable, 3 needed\n       applied: no    reason: NO_QUORUM    request: 5f2c0000:41\n  try: kvctl -e 127.0.0.1:7103 put -n bank alice 1   (n3 has a quorum)\n       kvctl put -n cart                             (another)"
        );
        assert_eq!(problem.exit, Exit::Unavailable);
        assert_eq!(problem.json()["error"]["applied"], "no");
        let read = Problem { of_read: true, ..problem.clone() };
        let second = read.to_string().lines().nth(1).unwrap().to_owned();
        assert_eq!(second, "       reason: NO_QUORUM    request: 5f2c0000:41");
        assert_eq!(read.json(), problem.json(), "programs find it in every error");
        assert_eq!(problem.json()["error"]["exit"], 3);
    }
}
