//! What a scraper makes of `/metrics`: OpenMetrics 1.0 text, read strictly and by hand.

use std::collections::{BTreeMap, BTreeSet};

/// The labels of a sample, by name.
pub type Labels = BTreeMap<String, String>;

/// A metric family: its head, and its samples in their order.
#[derive(Debug)]
pub struct Family {
    pub kind: String,
    pub help: String,
    pub unit: Option<String>,
    /// The name with its suffix, the labels, the value.
    pub samples: Vec<(String, Labels, f64)>,
}

/// One scrape.
#[derive(Debug)]
pub struct Scrape(pub BTreeMap<String, Family>);

/// What may follow a family's name in its samples.
fn suffixes(kind: &str) -> &'static [&'static str] {
    match kind {
        "counter" => &["_total"],
        "info" => &["_info"],
        "histogram" => &["_bucket", "_sum", "_count"],
        "gauge" => &[""],
        other => panic!("a type that walgate does not have: {other}"),
    }
}

impl Scrape {
    /// Reads a whole text; whatever is not as the standard has it fails the test.
    #[track_caller]
    pub fn parse(text: &str) -> Scrape {
        let body = text.strip_suffix("# EOF\n").expect("the end is marked");
        assert!(!body.contains("# EOF"), "the end is marked once");
        let mut families: BTreeMap<String, Family> = BTreeMap::new();
        let mut current = String::new();
        for line in body.lines() {
            if let Some(rest) = line.strip_prefix("# ") {
                let (word, rest) = rest.split_once(' ').expect("a word");
                let (name, value) = rest.split_once(' ').expect("a name");
                if word == "HELP" {
                    let family = Family { kind: String::new(), help: value.into(), unit: None, samples: Vec::new() };
                    assert!(families.insert(name.to_owned(), family).is_none(), "{name} comes twice");
                    name.clone_into(&mut current);
                }
                assert_eq!(name, current, "the head of one family: {line}");
                let family = families.get_mut(name).expect("HELP comes first");
                match word {
                    "HELP" => {}
                    "TYPE" => value.clone_into(&mut family.kind),
                    "UNIT" => family.unit = Some(value.to_owned()),
                    _ => panic!("{line}"),
                }
                continue;
            }
            let (name, labels, value) = sample(line);
            let family = families.get_mut(&current).expect("a head before its samples");
            let suffix = name.strip_prefix(&*current).unwrap_or_else(|| panic!("{line} stands under {current}"));
            assert!(suffixes(&family.kind).contains(&suffix), "{line} is no sample of a {}", family.kind);
            family.samples.push((name, labels, value));
        }
        let scrape = Scrape(families);
        scrape.check();
        scrape
    }

    fn check(&self) {
        let mut series = BTreeSet::new();
        for (name, family) in &self.0 {
            assert!(name.starts_with("walgate_") && !family.kind.is_empty() && !family.help.is_empty(), "{name}");
            if let Some(unit) = &family.unit {
                assert!(name.ends_with(&format!("_{unit}")), "{name} is in {unit}");
            }
            for (sample, labels, value) in &family.samples {
                assert!(series.insert((sample, labels)), "{sample} {labels:?} comes twice");
                assert!(family.kind == "gauge" || *value >= 0.0, "{sample} {value}");
            }
            if family.kind == "histogram" {
                self.check_histogram(name, family);
            }
        }
    }

    /// Buckets ascend in bound and count, and the last one, `+Inf`, holds everything.
    fn check_histogram(&self, name: &str, family: &Family) {
        let mut last: BTreeMap<Labels, (f64, f64)> = BTreeMap::new();
        for (sample, labels, value) in family.samples.iter().filter(|sample| sample.0.ends_with("_bucket")) {
            let mut labels = labels.clone();
            let le = labels.remove("le").expect("a bound");
            let bound = if le == "+Inf" { f64::INFINITY } else { le.parse().expect("a bound") };
            if let Some((before, count)) = last.insert(labels, (bound, *value)) {
                assert!(before < bound && count <= *value, "{sample} {le}");
            }
        }
        for (labels, (bound, value)) in &last {
            let all: Vec<(&str, &str)> = labels.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            assert_eq!(Some(*value), self.sample(&format!("{name}_count"), &all), "{name} {labels:?}");
            assert!(bound.is_infinite(), "{name} {labels:?} has no bucket +Inf");
            assert!(self.sample(&format!("{name}_sum"), &all).is_some(), "{name} {labels:?} has no sum");
        }
    }

    /// The value of the one sample with this name and exactly these labels.
    pub fn sample(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let labels: Labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        self.0
            .values()
            .flat_map(|family| &family.samples)
            .find(|sample| sample.0 == name && sample.1 == labels)
            .map(|sample| sample.2)
    }

    /// The same, of a sample that must be there.
    #[track_caller]
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.sample(name, labels).unwrap_or_else(|| panic!("no {name} {labels:?} in {:#?}", self.series()))
    }

    /// Every series, without its value.
    pub fn series(&self) -> Vec<String> {
        let samples = self.0.values().flat_map(|family| &family.samples);
        samples.map(|(name, labels, _)| format!("{name} {labels:?}")).collect()
    }
}

/// `name{label="value",...} number`
fn sample(line: &str) -> (String, Labels, f64) {
    let end = line.find(['{', ' ']).unwrap_or_else(|| panic!("{line}"));
    let (name, mut rest) = line.split_at(end);
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    assert!(name.chars().all(legal), "{line}");
    let mut labels = Labels::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (label, behind) = rest.split_once("=\"").unwrap_or_else(|| panic!("{line}"));
            assert!(!label.is_empty() && label.chars().all(legal), "{line}");
            let (value, behind) = quoted(behind);
            assert!(labels.insert(label.to_owned(), value).is_none(), "{line}");
            rest = behind.strip_prefix(',').unwrap_or(behind);
        }
        rest = &rest[1..];
        assert!(!labels.is_empty(), "braces with nothing in them: {line}");
    }
    let value = rest.strip_prefix(' ').unwrap_or_else(|| panic!("{line}"));
    (name.to_owned(), labels, value.parse().unwrap_or_else(|_| panic!("{line}")))
}

/// The value up to its closing quote, unescaped; and what stands behind it.
fn quoted(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return (value, &text[at + 1..]),
            '\\' => match chars.next().expect("an escaped character").1 {
                'n' => value.push('\n'),
                escaped @ ('"' | '\\') => value.push(escaped),
                other => panic!("\\{other}"),
            },
            _ => value.push(char),
        }
    }
    panic!("no closing quote in {text}")
}
