//! Log lines that can repeat: fewer and fewer of one cause. Pure; the time is a parameter.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

/// The pause after the first line of a cause. It doubles with each further line.
const FIRST: Duration = Duration::from_secs(1);
/// The longest pause.
const LONGEST: Duration = Duration::from_secs(60);

/// Lets the first line of a cause through at once, then one after 1, 2, 4 ... 60 s, then one a minute. A cause of which
/// there was nothing for twice the last pause is new again.
#[derive(Debug, Default)]
pub struct Gate {
    last: Option<Instant>,
    pause: Duration,
    suppressed: u64,
}

impl Gate {
    /// Whether a line may be written now; then also how many were not, since the last one.
    pub fn open(&mut self, now: Instant) -> Option<u64> {
        let since = self.last.map(|last| now.saturating_duration_since(last));
        self.pause = match since {
            Some(since) if since < self.pause => {
                self.suppressed += 1;
                return None;
            }
            Some(since) if since < self.pause * 2 => (self.pause * 2).min(LONGEST),
            _ => FIRST,
        };
        self.last = Some(now);
        Some(std::mem::take(&mut self.suppressed))
    }
}

/// A gate for each cause. Causes are words of the program, never data: their number is bounded by the code.
#[derive(Debug, Default)]
pub struct Gates(HashMap<&'static str, Gate>);

impl Gates {
    /// [`Gate::open`] of this cause.
    pub fn open(&mut self, cause: &'static str, now: Instant) -> Option<u64> {
        self.0.entry(cause).or_default().open(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_get_fewer_and_count_those_they_stand_for() {
        let (mut gate, start) = (Gate::default(), Instant::now());
        // Ten failures a second, for an hour.
        let lines: Vec<_> = (0..36_000u64)
            .filter_map(|n| gate.open(start + Duration::from_millis(n * 100)).map(|suppressed| (n / 10, suppressed)))
            .collect();
        assert_eq!(lines[..7], [(0, 0), (1, 9), (3, 19), (7, 39), (15, 79), (31, 159), (63, 319)]);
        assert!(lines[7..].windows(2).all(|pair| pair[1].0 - pair[0].0 == 60), "{lines:?}");
        let written: u64 = lines.len() as u64 + lines.iter().map(|(_, suppressed)| suppressed).sum::<u64>();
        assert!(lines.len() < 70 && written > 35_000, "{} lines stand for {written}", lines.len());
    }

    #[test]
    fn a_cause_that_comes_back_after_a_calm_is_told_at_once() {
        let (mut gate, start) = (Gate::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        let lines = [0, 10, 999, 1000, 1001, 10_000, 10_500, 11_000].map(|ms| gate.open(at(ms)));
        assert_eq!(lines, [Some(0), None, None, Some(2), None, Some(1), None, Some(1)]);
    }

    #[test]
    fn causes_do_not_silence_each_other() {
        let (mut gates, now) = (Gates::default(), Instant::now());
        assert_eq!(["timeout", "timeout", "connection"].map(|cause| gates.open(cause, now)), [Some(0), None, Some(0)]);
    }
}
