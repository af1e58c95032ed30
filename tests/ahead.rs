//! The engine over real ranks, with steps started ahead and without: the same answers.

use std::sync::Arc;

use adapters::catalogue::{Catalogue, Sources};
use adapters::cut::{Group as Cut, PlainSharding};
use adapters::residency::Limits;
use config::settings;
use contract::adapter::{Generation, Slot};
use contract::request::{Finish, Request};
use contract::sampling::Sampling;
use contract::step::{Batch, Executor, Fault, StepOutput};
use engine::handle::{Engine, Parts, Ticket};
use engine::metrics::Metrics;
use engine::text::Text;
use ranks::group::Group;

use crate::ranks::fixture::{ENGINE, Fixture, parallel};

/// CPU ranks that say they run ahead, which pays on GPUs only.
struct Eager(Group);

impl Executor for Eager {
    fn runs_ahead(&self) -> bool {
        true
    }

    fn start(&mut self, batch: Arc<Batch>) {
        self.0.start(batch);
    }

    fn finish(&mut self) -> Result<StepOutput, Fault> {
        self.0.finish()
    }

    fn load(&mut self, slot: Slot, generation: Arc<Generation>) -> Result<(), Fault> {
        self.0.load(slot, generation)
    }

    fn unload(&mut self, slot: Slot) -> Result<(), Fault> {
        self.0.unload(slot)
    }
}

/// Few blocks and two slots for three adapters, so that sequences give way and slots change hands.
fn start(fixture: &Fixture, ahead: bool) -> Engine {
    let settings =
        settings::Engine { kv_cache_bytes: Some(96 << 10), prefix_cache: true, ..ENGINE };
    let model = fixture.model(fixture.base());
    let group = fixture.start_with(&model, &parallel(1), &settings).unwrap();
    let shape = fixture.config.shape;
    let cut = Cut { base: shape, ranks: 1, plain_sharding: PlainSharding::Replicated };
    let folder = fixture.base().with_file_name("adapters");
    let sources = Sources { dir: Some(&folder), named: &[] };
    let limits = Limits { slots_max: 2, host_bytes_max: 1 << 30 };
    let (blocks, context_max) = (group.limits().blocks, group.limits().positions_max);
    let executor: Box<dyn Executor> = if ahead { Box::new(Eager(group)) } else { Box::new(group) };
    let parts = Parts {
        executor,
        blocks,
        vocab: shape.vocab,
        context_max,
        text: Arc::new(Text::open(&fixture.base()).unwrap()),
        catalogue: Arc::new(Catalogue::open(sources, cut, limits).unwrap()),
        settings,
        slots_max: 2,
        host_bytes: 1 << 30,
        metrics: Arc::new(Metrics::new("golden", 0, context_max)),
    };
    Engine::start(parts).unwrap()
}

/// Greedy and drawn, with stops that nobody sees coming, penalties and logprobs.
fn requests(fixture: &Fixture) -> Vec<Request> {
    let adapters = [None, Some("bd2"), Some("plain"), None, Some("bd4")];
    let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
    let stops = (5..25).collect();
    let samplings = [
        greedy.clone(),
        Sampling { stop_tokens: stops, ..Sampling::default() },
        Sampling { top_p: 0.9, temperature: 1.3, ..Sampling::default() },
        Sampling { repetition_penalty: 1.3, ..greedy.clone() },
    ];
    let prompts = fixture.prompts();
    let request = |at: usize| Request {
        id: at.to_string(),
        adapter: adapters[at % adapters.len()].map(str::to_owned),
        priority: 0,
        prompt: prompts[at % prompts.len()][..3 + at % 12].into(),
        sampling: Arc::new(samplings[at % samplings.len()].clone()),
        seed: at as u64,
        max_tokens: 4 + (at * 7 % 23) as u32,
        stop: if at % 5 == 2 { vec!["e".to_owned()] } else { Vec::new() },
        include_stop: false,
        skip_special_tokens: true,
        logprobs: (at % 9 == 8).then_some(1),
        prompt_logprobs: None,
    };
    (0..24).map(request).collect()
}

async fn read(mut ticket: Ticket) -> (String, Option<Finish>) {
    let (mut text, mut finish) = (String::new(), None);
    while let Some(news) = ticket.next().await {
        text += &news.text;
        finish = news.finish;
    }
    (text, finish)
}

#[test]
fn an_engine_that_runs_ahead_says_the_same() {
    let fixture = Fixture::open("llama");
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let told = |ahead, together: usize| {
        let engine = start(&fixture, ahead);
        let all = requests(&fixture);
        let mut told = Vec::new();
        for some in all.chunks(together) {
            let tickets: Vec<_> =
                some.iter().map(|it| engine.submit(it.clone()).unwrap()).collect();
            told.extend(tickets.into_iter().map(|ticket| runtime.block_on(read(ticket))));
        }
        runtime.block_on(engine.idle());
        told
    };
    let alone = told(false, 1);
    assert!(alone.iter().any(|(_, finish)| matches!(finish, Some(Finish::StopToken(_)))));
    assert!(alone.iter().any(|(_, finish)| matches!(finish, Some(Finish::StopText(_)))));
    for (ahead, together) in [(true, 1), (true, 12), (false, 12)] {
        assert_eq!(told(ahead, together), alone, "ahead: {ahead}, {together} together");
    }
}
