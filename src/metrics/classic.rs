//! The text format from before OpenMetrics, for scrapers that do not ask for the newer one.

/// The same metrics as Prometheus's text format 0.0.4: heads carry the samples' full names, and there is no unit, no
/// `info` and no end mark.
pub(super) fn from_open_metrics(text: &str) -> String {
    let mut classic = String::with_capacity(text.len());
    let mut help = None;
    for line in text.lines() {
        if let Some(head) = line.strip_prefix("# HELP ") {
            help = head.split_once(' ');
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|head| head.split_once(' ')) {
            let (suffix, kind) = match kind {
                "counter" => ("_total", kind),
                "info" => ("_info", "gauge"),
                _ => ("", kind),
            };
            if let Some((_, text)) = help.take() {
                classic.push_str(&format!("# HELP {name}{suffix} {text}\n"));
            }
            classic.push_str(&format!("# TYPE {name}{suffix} {kind}\n"));
        } else if !line.starts_with("# UNIT ") && line != "# EOF" {
            classic.push_str(line);
            classic.push('\n');
        }
    }
    classic
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_carry_full_names_and_samples_stay() {
        let open = "# HELP walgate_build Version.\n# TYPE walgate_build info\nwalgate_build_info{version=\"1\"} 1\n\
                    # HELP walgate_events Deliveries, # UNIT included.\n# TYPE walgate_events counter\n\
                    walgate_events_total{route=\"# EOF\"} 7\n# HELP walgate_lag_bytes WAL.\n\
                    # TYPE walgate_lag_bytes gauge\n# UNIT walgate_lag_bytes bytes\nwalgate_lag_bytes 5\n# EOF\n";
        let classic = "# HELP walgate_build_info Version.\n# TYPE walgate_build_info gauge\n\
                       walgate_build_info{version=\"1\"} 1\n# HELP walgate_events_total Deliveries, # UNIT included.\n\
                       # TYPE walgate_events_total counter\nwalgate_events_total{route=\"# EOF\"} 7\n\
                       # HELP walgate_lag_bytes WAL.\n# TYPE walgate_lag_bytes gauge\nwalgate_lag_bytes 5\n";
        assert_eq!(from_open_metrics(open), classic);
    }
}
