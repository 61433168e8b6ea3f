//! The lanes as the gateway owns them: started together, watched, stopped together.

use std::sync::Arc;

use tokio::{sync::watch, task::JoinSet, time::Instant};

use crate::{
    checkpoint::Checkpoint,
    control::parking::ParkingStore,
    lane::{self, LaneEnd, LaneHandle, LaneSettings, Observer, SinkSource},
};

/// One sink and how it is driven.
pub struct LanePlan {
    /// The sink's name.
    pub name: String,
    /// What its rows in walgate's own tables are under: its name; for events without a route nothing.
    pub shelf: String,
    /// The sink's kind.
    pub kind: String,
    /// Whether `/readyz` speaks of it.
    pub required: bool,
    /// What makes the sink.
    pub source: SinkSource,
    /// How it is driven.
    pub settings: LaneSettings,
    /// walgate's own tables, where its settings use them.
    pub store: Option<Arc<dyn ParkingStore>>,
    /// What is told of it.
    pub observer: Arc<dyn Observer>,
}

/// A lane as status shows it.
#[derive(Clone)]
pub struct NamedLane {
    /// The sink's name.
    pub name: String,
    /// What its rows in walgate's own tables are under: its name; for events without a route nothing.
    pub shelf: String,
    /// The sink's kind.
    pub kind: String,
    /// Whether `/readyz` speaks of it.
    pub required: bool,
    /// The lane.
    pub handle: LaneHandle,
}

/// The running lanes, in the order of the configuration.
pub struct Lanes {
    named: Vec<NamedLane>,
    stop: watch::Sender<Option<Instant>>,
    tasks: JoinSet<(String, Ending)>,
}

/// Why a lane ended before it was told to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It was told to.
    Stopped,
    /// Its receiver has gone for good: an orderly end.
    Closed,
    /// Its task panicked: a fault in walgate, after which nothing of this process is to be trusted.
    Panicked,
}

impl Lanes {
    /// Starts every lane.
    pub fn start(plans: Vec<LanePlan>, checkpoint: &Checkpoint) -> Self {
        let stop = watch::Sender::new(None);
        let mut tasks = JoinSet::new();
        let named = plans
            .into_iter()
            .map(|LanePlan { name, shelf, kind, required, source, settings, store, observer }| {
                let (handle, task) =
                    lane::spawn(name.clone(), source, settings, store, checkpoint.clone(), observer, stop.subscribe());
                let sink = name.clone();
                tasks.spawn(async move {
                    let ending = match task.await {
                        Ok(LaneEnd::Stopped) => Ending::Stopped,
                        Ok(LaneEnd::SinkClosed) => Ending::Closed,
                        Err(_) => Ending::Panicked,
                    };
                    (sink, ending)
                });
                NamedLane { name, shelf, kind, required, handle }
            })
            .collect();
        Lanes { named, stop, tasks }
    }

    /// The lanes for status.
    pub fn named(&self) -> &[NamedLane] {
        &self.named
    }

    /// Sends nothing to these sinks until somebody resumes them.
    pub fn pause(&self, sinks: &[String]) {
        for lane in self.named.iter().filter(|lane| sinks.contains(&lane.shelf)) {
            tracing::warn!(sink = lane.name, "the sink is paused on an operator's request: `walgate resume` ends that");
            lane.handle.pause(true);
        }
    }

    /// The lanes for pushing, by their place.
    pub fn handles(&self) -> Vec<LaneHandle> {
        self.named.iter().map(|lane| lane.handle.clone()).collect()
    }

    /// Waits for the first lane that ends by itself.
    pub async fn ended(&mut self) -> (String, Ending) {
        match self.tasks.join_next().await {
            Some(Ok(ended)) => ended,
            Some(Err(_)) => ("?".to_owned(), Ending::Panicked),
            None => std::future::pending().await,
        }
    }

    /// Ends every lane: batches in flight may go on until `deadline`. Waits for all of them.
    pub async fn stop(mut self, deadline: Instant) {
        self.stop.send_replace(Some(deadline));
        while self.tasks.join_next().await.is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use std::{num::NonZeroU32, time::Duration};

    use walgate_sink::{Batch, Capabilities, Delivery, DeliveryReport, Event, Lsn, Sink, SinkError, Target};

    use super::*;
    use crate::lane::Work;

    struct Willing;

    impl Sink for Willing {
        async fn deliver(&self, _: &Batch, report: &DeliveryReport) {
            report.acknowledge_rest();
        }
        async fn check(&self) -> Result<(), SinkError> {
            Ok(())
        }
        async fn close(&self) {}
        fn capabilities(&self) -> Capabilities {
            Capabilities::default()
        }
    }

    /// A fault within the lane itself.
    struct Broken;

    impl Observer for Broken {
        fn in_flight(&self, _: usize) {
            panic!("planned panic");
        }
    }

    #[tokio::test]
    async fn p11_a_lane_that_breaks_is_named() {
        let checkpoint = Checkpoint::new(Lsn(1));
        let plan = |name: &str, observer: Arc<dyn Observer>| LanePlan {
            name: name.into(),
            shelf: name.into(),
            kind: "willing".into(),
            required: true,
            source: SinkSource::connected(Arc::new(Willing)),
            settings: LaneSettings::default(),
            store: None,
            observer,
        };
        let mut lanes = Lanes::start(vec![plan("well", Arc::new(())), plan("sick", Arc::new(Broken))], &checkpoint);
        let ticket = checkpoint.with(|ring| {
            ring.begin(Lsn(2));
            ring.track(NonZeroU32::new(2).unwrap(), 1)
        });
        for lane in lanes.handles() {
            let delivery = Delivery {
                event: Event::new("1", "order.created"),
                target: Target::new(&[], []),
                ordering_key: None,
                dedup_id: "1".into(),
                attempt: 1,
            };
            lane.push(Work { delivery, debt: ticket.into(), route: 0, invalid: None });
        }
        assert_eq!(lanes.ended().await, ("sick".to_owned(), Ending::Panicked));
        // The others stop in order, and the broken one does not keep them waiting.
        lanes.stop(Instant::now() + Duration::from_secs(60)).await;
    }
}
