//! The lanes as the gateway owns them: started together, watched, stopped together.

use std::sync::Arc;

use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::Instant,
};

use crate::{
    checkpoint::Checkpoint,
    control::parking::ParkingStore,
    lane::{self, Exchange, LaneEnd, LaneHandle, LaneSettings, Observer, SinkSource},
    telemetry::failpoint,
};

/// One sink and how it is driven.
#[derive(Clone)]
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
    /// Another plan of this name with the same text is the same lane.
    pub fingerprint: String,
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
    running: Vec<Running>,
    /// The slot is ours.
    awake: bool,
    checkpoint: Checkpoint,
    /// Where they find each other.
    exchange: Exchange,
    ended: mpsc::UnboundedSender<(String, Ending)>,
}

/// Tells of lanes that end by themselves.
pub struct Endings(mpsc::UnboundedReceiver<(String, Ending)>);

struct Running {
    named: NamedLane,
    plan: LanePlan,
    stop: watch::Sender<Option<Instant>>,
    task: JoinHandle<()>,
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
    pub fn start(plans: Vec<LanePlan>, checkpoint: &Checkpoint) -> (Self, Endings) {
        let (ended, endings) = mpsc::unbounded_channel();
        let mut lanes = Lanes {
            running: Vec::new(),
            awake: false,
            checkpoint: checkpoint.clone(),
            exchange: Exchange::default(),
            ended,
        };
        for plan in plans {
            let running = lanes.spawn(plan);
            lanes.running.push(running);
        }
        (lanes, Endings(endings))
    }

    /// Drops everything that they hold, and begins again with nothing: the slot is another's, or was. What is in flight is
    /// given up.
    pub async fn start_over(&mut self) {
        self.awake = false;
        for lane in &self.running {
            lane.stop.send_replace(Some(Instant::now()));
        }
        let mut plans = Vec::with_capacity(self.running.len());
        for Running { mut plan, task, named, .. } in std::mem::take(&mut self.running) {
            let _ = task.await;
            plan.required = named.required;
            plans.push(plan);
        }
        self.running = plans.into_iter().map(|plan| self.spawn(plan)).collect();
    }

    /// The slot is ours: what is parked may go out.
    pub fn wake(&mut self) {
        self.awake = true;
        for lane in &self.running {
            lane.named.handle.doze(false);
        }
    }

    fn spawn(&self, mut plan: LanePlan) -> Running {
        // Until the slot is ours.
        plan.settings.policy.dormant = !self.awake;
        plan.settings.exchange = self.exchange.clone();
        let LanePlan { name, shelf, kind, required, source, settings, store, observer, .. } = plan.clone();
        let stop = watch::Sender::new(None);
        let checkpoint = self.checkpoint.clone();
        let (handle, lane) = lane::spawn(name.clone(), source, settings, store, checkpoint, observer, stop.subscribe());
        let (sink, ended, told) = (name.clone(), self.ended.clone(), stop.subscribe());
        let task = tokio::spawn(async move {
            let ending = match lane.await {
                Ok(LaneEnd::Stopped) => Ending::Stopped,
                Ok(LaneEnd::SinkClosed) => Ending::Closed,
                Err(_) => Ending::Panicked,
            };
            // Whoever told it to end knows.
            if ending != Ending::Stopped || told.borrow().is_none() {
                let _ = ended.send((sink, ending));
            }
        });
        Running { named: NamedLane { name, shelf, kind, required, handle }, plan, stop, task }
    }

    /// The lanes for status.
    #[must_use]
    pub fn named(&self) -> Vec<NamedLane> {
        self.running.iter().map(|lane| lane.named.clone()).collect()
    }

    /// Sends nothing to these sinks until somebody resumes them.
    pub fn pause(&self, sinks: &[String]) {
        for lane in self.running.iter().map(|lane| &lane.named).filter(|lane| sinks.contains(&lane.shelf)) {
            tracing::warn!(sink = lane.name, "the sink is paused on an operator's request: `walgate resume` ends that");
            lane.handle.pause(true);
        }
    }

    /// The lanes for pushing, by their place.
    #[must_use]
    pub fn handles(&self) -> Vec<LaneHandle> {
        self.running.iter().map(|lane| lane.named.handle.clone()).collect()
    }

    /// The lanes that would not be there any more as they are: changed, and removed ones.
    #[must_use]
    pub fn leaving(&self, plans: &[LanePlan]) -> (Vec<NamedLane>, Vec<NamedLane>) {
        let (mut changed, mut removed) = (Vec::new(), Vec::new());
        for lane in &self.running {
            match plans.iter().find(|plan| plan.name == lane.named.name) {
                Some(plan) if plan.fingerprint == lane.plan.fingerprint => {}
                Some(_) => changed.push(lane.named.clone()),
                None => removed.push(lane.named.clone()),
            }
        }
        (changed, removed)
    }

    /// Goes over to these plans, in their order: what is the same stays, what has changed is made anew, the rest ends.
    /// Lanes that end should owe nothing any more.
    pub async fn replace(&mut self, plans: Vec<LanePlan>, deadline: Instant) {
        let mut before = std::mem::take(&mut self.running);
        let mut after = Vec::with_capacity(plans.len());
        let mut paused = Vec::new();
        for plan in plans {
            let found = before.iter().position(|lane| lane.named.name == plan.name);
            match found {
                Some(index) if before[index].plan.fingerprint == plan.fingerprint => {
                    let mut kept = before.swap_remove(index);
                    kept.named.required = plan.required;
                    after.push(Ok(kept));
                }
                Some(index) => {
                    let old = before.swap_remove(index);
                    if old.named.handle.is_paused() {
                        paused.push(plan.shelf.clone());
                    }
                    end(old, deadline).await;
                    after.push(Err(plan));
                }
                None => after.push(Err(plan)),
            }
        }
        for old in before {
            end(old, deadline).await;
        }
        self.running = after
            .into_iter()
            .map(|lane| match lane {
                Ok(kept) => kept,
                Err(plan) => self.spawn(plan),
            })
            .collect();
        self.pause(&paused);
    }

    /// Ends every lane: batches in flight may go on until `deadline`. Waits for all of them.
    pub async fn stop(self, deadline: Instant) {
        for lane in &self.running {
            lane.stop.send_replace(Some(deadline));
        }
        for lane in self.running {
            let _ = lane.task.await;
        }
    }
}

async fn end(lane: Running, deadline: Instant) {
    lane.stop.send_replace(Some(deadline));
    let _ = lane.task.await;
    failpoint("lane.ended");
}

impl Endings {
    /// Waits for the first lane that ends by itself.
    pub async fn next(&mut self) -> (String, Ending) {
        match self.0.recv().await {
            Some(ended) => ended,
            None => std::future::pending().await,
        }
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
            fingerprint: String::new(),
        };
        let (lanes, mut endings) =
            Lanes::start(vec![plan("well", Arc::new(())), plan("sick", Arc::new(Broken))], &checkpoint);
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
        assert_eq!(endings.next().await, ("sick".to_owned(), Ending::Panicked));
        // The others stop in order, and the broken one does not keep them waiting.
        lanes.stop(Instant::now() + Duration::from_secs(60)).await;
    }
}
