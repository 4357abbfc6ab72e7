//! The demo as a person would type it, on a lab of their own: lines that run as they stand, wherever they are
//! typed.

/// What the demo does, one line after the other.
pub const STEPS: [&str; 10] = [
    "lab up --name by-hand --fresh",
    "ns create bank --mode strong",
    "ns create cart --mode available",
    "put -n bank alice 100",
    "put -n cart user:1 apple",
    "fault partition n1,n2 / n3,n4,n5",
    "cluster status --as-seen-by all",
    "fault heal",
    "get -n cart user:1",
    "lab down --name by-hand",
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

/// The lines, each whole, for a lab on these ports.
pub(crate) fn lines(program: &str, port_base: u16) -> Vec<String> {
    let ports = |step: &str| if step.starts_with("lab up") { ports(port_base) } else { String::new() };
    STEPS.iter().map(|step| format!("{program} {step}{}", ports(step))).collect()
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
        assert_eq!(lines[9], "'/it'\\''s here/kvctl' lab down --name by-hand");
    }
}
