//! The demo as a person would type it, on a lab of their own: lines that run as they stand, wherever they are
//! typed.

use std::borrow::Cow;

/// A line, and what comes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// The arguments of kvctl; `{n1}` stands for the address of that node.
    pub line: &'static str,
    /// Its exit code.
    pub ends: i32,
    /// It is typed again until it succeeds: the majority may have to elect a leader first.
    pub again: bool,
    /// What is seen, also in what it says when it refuses; of several words each.
    pub seen: &'static [&'static str],
}

const fn step(line: &'static str) -> Step {
    Step { line, ends: 0, again: false, seen: &[] }
}

/// What the demo does, one line after the other: with writes of both namespaces on both sides of the cut, and
/// what came of them.
pub const STEPS: [Step; 16] = [
    step("lab up --name by-hand --fresh"),
    step("ns create bank --mode strong"),
    step("ns create cart --mode available"),
    step("put -n bank alice 100"),
    step("put -n cart user:1 apple"),
    // The harder case, as in the demo; once the others have a leader, this one knows that it leads no more.
    step("cluster transfer-leader n1"),
    step("fault partition n1,n2 / n3,n4,n5"),
    step("-e {n1} put -n cart user:1 apple,pear"),
    step("-e {n3} put -n cart user:1 apple,plum"),
    Step { again: true, ..step("-e {n3} put -n bank alice 75") },
    Step { ends: 3, seen: &["NO_QUORUM", "applied: no"], ..step("-e {n1} put -n bank alice 50") },
    step("cluster status --as-seen-by all"),
    step("fault heal"),
    Step { seen: &["75"], ..step("get -n bank alice") },
    Step { seen: &["apple,pear", "apple,plum"], ..step("get -n cart user:1 --all") },
    step("lab down --name by-hand"),
];
/// What a reader is to know of them.
pub(crate) const ABOUT: [&str; 2] = [
    "By hand: in the cut n1 refuses the write to bank, as it should; both writes to cart are taken and kept side by side.",
    "Hints bring them home after the healing. That takes a moment: a read that is faster sees one of them.",
];
/// The ports that a lab has unless it is told others.
pub(crate) const PORT_BASE: u16 = 7100;

/// How this program is called: its name is not on the PATH of everyone.
pub(crate) fn program() -> String {
    let own = std::env::current_exe().ok();
    // The harness draws such pages too.
    let own = own.filter(|path| path.file_name().is_some_and(|name| name == "kvctl"));
    own.map_or_else(|| "kvctl".into(), |path| quoted(&path.display().to_string()))
}

/// As one word of a shell.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@:=,".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// What starting a lab on these ports takes beyond `lab up`.
pub(crate) fn ports(port_base: u16) -> String {
    if port_base == PORT_BASE { String::new() } else { format!(" --port-base {port_base}") }
}

/// The arguments of a step for a lab on these ports.
pub fn arguments(step: &Step, port_base: u16) -> String {
    let ports = if step.line.starts_with("lab up") { ports(port_base) } else { String::new() };
    let named = (1..=5).fold(Cow::Borrowed(step.line), |line, node| {
        Cow::Owned(
            line.replace(&format!("{{n{node}}}"), &format!("127.0.0.1:{}", port_base.saturating_add(node))),
        )
    });
    format!("{named}{ports}")
}

/// The lines, each whole, for a lab on these ports.
pub(crate) fn lines(program: &str, port_base: u16) -> Vec<String> {
    let line = |step: &Step| {
        let whole = format!("{program} {}", arguments(step, port_base));
        if step.again { format!("until {whole}; do sleep 1; done") } else { whole }
    };
    STEPS.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_name_the_program_whole_and_the_ports_where_they_are_others() {
        let lines = lines("/a/kvctl", PORT_BASE);
        assert_eq!((lines.len(), lines[0].as_str()), (STEPS.len(), "/a/kvctl lab up --name by-hand --fresh"));
        let lines = super::lines(&quoted("/it's here/kvctl"), 9_100);
        assert_eq!(lines[0], "'/it'\\''s here/kvctl' lab up --name by-hand --fresh --port-base 9100");
        assert_eq!(lines[15], "'/it'\\''s here/kvctl' lab down --name by-hand");
        assert_eq!(lines[10], "'/it'\\''s here/kvctl' -e 127.0.0.1:9101 put -n bank alice 50");
    }

    /// Each namespace is written on both sides of the cut.
    #[test]
    fn the_cut_is_written_to_on_both_sides_in_both_modes() {
        let at = |begin: &str| STEPS.iter().position(|step| step.line.starts_with(begin)).unwrap();
        let (cut, healed) = (at("fault partition"), at("fault heal"));
        for node in ["{n1}", "{n3}"] {
            for namespace in ["bank", "cart"] {
                let put = at(&format!("-e {node} put -n {namespace}"));
                assert!(cut < put && put < healed, "{namespace} at {node}");
                assert!(at(&format!("get -n {namespace}")) > healed, "what came of it");
            }
        }
    }
}
