//! Random histories: commits, reads, settling in any order, keepalives, lost connections, crashes of the server and
//! restarts of the gateway, against the naive reference in `world`.

use proptest::{prelude::*, sample::Index};
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};
use walgate_sink::Lsn;

use super::super::{BeginVerdict, CommitVerdict, Resume, Ring, RowVerdict, Ticket};
use super::world::{Change, Happened, Transition, World};
use super::{deliveries, lsn};

struct History;

impl ReferenceStateMachine for History {
    type State = World;
    type Transition = Transition;

    fn init_state() -> BoxedStrategy<World> {
        (0..100u64).prop_map(|confirmed| World::new(lsn(confirmed))).boxed()
    }

    fn transitions(_: &World) -> BoxedStrategy<Transition> {
        let row = prop_oneof![1 => Just(None), 5 => (0..4u32, 0..100u64).prop_map(Some)];
        // Commit records often stand end to end.
        let gap = prop_oneof![Just(0), 1..20u64];
        let change = prop_oneof![Just(Change::AnotherId), Just(Change::AnotherTable), Just(Change::Gone)];
        prop_oneof![
            6 => (gap, 1..20u64, prop::collection::vec(row, 0..6))
                .prop_map(|(gap, length, rows)| Transition::Commit { gap, length, rows }),
            12 => (1..6usize).prop_map(Transition::Receive),
            12 => any::<Index>().prop_map(Transition::Settle),
            3 => (0..20u64).prop_map(|drift| Transition::Keepalive { drift }),
            2 => any::<Index>().prop_map(Transition::SettleAgain),
            1 => Just(Transition::SettleEverything),
            2 => Just(Transition::Report),
            1 => Just(Transition::Persist),
            3 => any::<bool>().prop_map(|crash| Transition::Reconnect { crash }),
            1 => change.prop_map(Transition::ReconnectChanged),
            1 => any::<bool>().prop_map(|crash| Transition::Restart { crash }),
        ]
        .boxed()
    }

    fn apply(mut world: World, transition: &Transition) -> World {
        world.apply(transition);
        world
    }
}

/// Ring and resume as an intake drives them.
struct Gateway {
    ring: Ring,
    resume: Resume,
    tickets: Vec<Ticket>,
    flush: Lsn,
}

impl Gateway {
    fn start(confirmed: Lsn) -> Self {
        Gateway { ring: Ring::new(confirmed), resume: Resume::new(confirmed), tickets: Vec::new(), flush: confirmed }
    }

    /// Does what the message asks for, and checks each answer.
    fn follow(&mut self, happened: &Happened) {
        match *happened {
            Happened::Begin { commit_lsn, verdict } => {
                assert_eq!(self.resume.begin(commit_lsn), verdict, "begin of {commit_lsn}");
                if verdict == BeginVerdict::New {
                    self.ring.begin(commit_lsn);
                }
            }
            Happened::Row { id, deliveries: count, bytes, verdict } => {
                assert_eq!(self.resume.row(id.to_string().as_bytes()), verdict, "row {id}");
                if count > 0 && matches!(verdict, RowVerdict::Track(_)) {
                    self.tickets.push(self.ring.track(deliveries(count), bytes));
                }
            }
            Happened::OtherRow => self.resume.other_row(),
            Happened::Commit { commit_lsn, end_lsn, verdict } => {
                assert_eq!(self.resume.commit(commit_lsn, end_lsn), verdict, "commit of {commit_lsn}");
                if verdict == CommitVerdict::Close {
                    self.ring.commit(end_lsn);
                }
            }
            Happened::Keepalive { wal_end, between_transactions } => {
                assert_eq!(self.resume.between_transactions(), between_transactions);
                if between_transactions || self.ring.is_open() {
                    self.ring.keepalive(wal_end);
                }
            }
            Happened::Settle { event, settled } => assert_eq!(self.ring.settle(self.tickets[event]), settled),
            Happened::Abandoned => self.ring.abandon(),
            Happened::Connected => self.resume.on_connect(),
            Happened::Restarted { confirmed } => *self = Gateway::start(confirmed),
        }
    }

    fn follow_all(&mut self, world: &World) {
        for happened in &world.happened {
            self.follow(happened);
            let flush = self.ring.flush_lsn();
            assert!(self.flush <= flush, "the flush LSN fell from {} to {flush}", self.flush);
            self.flush = flush;
        }
    }
}

struct RingAndResume;

impl StateMachineTest for RingAndResume {
    type SystemUnderTest = Gateway;
    type Reference = History;

    fn init_test(world: &World) -> Gateway {
        Gateway::start(world.model.flush_lsn())
    }

    fn apply(mut gateway: Gateway, world: &World, _: Transition) -> Gateway {
        gateway.follow_all(world);
        gateway
    }

    fn check_invariants(gateway: &Gateway, world: &World) {
        world.model.compare(&gateway.ring);
        let flush = gateway.ring.flush_lsn();
        if let Some(owed) = world.first_owed() {
            assert!(flush <= owed, "{flush} is confirmed, and transaction {owed} is owed: a restart would lose it");
        }
        assert_eq!(gateway.resume.open_transaction(), world.open_transaction());
        if let Some((commit_lsn, ordinal)) = world.last_taken() {
            let last = gateway.resume.last_position();
            // A transaction that was given up leaves its last position behind, until its first row is taken again.
            assert!(last.is_some_and(|last| (last.commit_lsn, last.ordinal) >= (commit_lsn, ordinal)));
        }
    }

    /// Whatever happened: once all is read and settled, nothing is owed and all is confirmed.
    fn teardown(mut gateway: Gateway, mut world: World) {
        while !world.everything_was_sent() {
            world.apply(&Transition::Receive(1));
            gateway.follow_all(&world);
            Self::check_invariants(&gateway, &world);
        }
        world.apply(&Transition::SettleEverything);
        gateway.follow_all(&world);
        Self::check_invariants(&gateway, &world);
        assert!(gateway.ring.is_idle());
        assert_eq!(world.first_owed(), None, "an event was never tracked");
        assert!(world.last_end().is_none_or(|end| gateway.ring.flush_lsn() >= end));
    }
}

prop_state_machine! {
    #[test]
    fn ring_and_resume_agree_with_the_naive_model(sequential 1..120 => RingAndResume);
}
