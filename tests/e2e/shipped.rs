//! The shipped files of a sink are true: its example loads, and every key stands in the reference.

use crate::support::walgate::{Setup, Walgate};

/// Loads `examples/<kind>.yaml` and the section of this name that is commented out in the reference, and looks for every
/// key of the sink in it. `env`: what the files refer to.
#[track_caller]
pub fn assert_true(kind: &str, name: &str, example: &str, env: &[(&str, &str)]) {
    let check = |text: &str| {
        let setup = env.iter().fold(Setup::literal(text), |setup, (name, value)| setup.env(name, value));
        Walgate::command(&setup, &["check", "--config", "{config}"])
    };
    check(example).expect(0, &[name, kind]);
    let reference = include_str!("../../config/walgate.reference.yaml");
    let section = reference.lines().skip_while(|line| *line != format!("  # {name}:"));
    let section: Vec<&str> = section.take_while(|line| !line.is_empty()).collect();
    let section = section.iter().map(|line| line.replacen("# ", "", 1)).collect::<Vec<_>>().join("\n");
    check(&format!("sinks:\n{section}\nroutes: [{{ event_type: \"**\", to: {name} }}]\n")).expect(0, &[name, kind]);
    // An unknown key makes walgate name them all.
    let output = check(&format!("sinks: {{ {name}: {{ {kind}: {{ nothing: 1 }} }} }}\n")).output();
    let allowed = output.split("allowed here: ").nth(1).and_then(|rest| rest.lines().next()).expect("a list of keys");
    for key in allowed.split([',', ';']).map(str::trim).filter(|key| !key.is_empty() && !key.contains(' ')) {
        let named = section.contains(&format!(" {key}:")) || (key.ends_with("_file") && section.contains(key));
        assert!(named, "{key} is missing in the reference");
    }
}
