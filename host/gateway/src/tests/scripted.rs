//! A policy whose answers follow from the name of the model that a request asks for.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use contract::policy::Policy;
use contract::policy::asked::Asked;
use contract::policy::builtin::score;
use contract::policy::chunk::{Filter, Released};
use contract::policy::completion::{Completion, Response, ResponseEdit};
use contract::policy::replica::{Demand, Load, Replica};
use contract::policy::subject::{Caller, Message, Subject, Tenant};
use contract::policy::verdict::{
    Admission, Denied, Edit, Identity, RequestVerdict, Selection, Source,
};
use tokio::time::sleep;

/// Keeps what it was asked.
#[derive(Default)]
pub struct Scripted {
    /// What `on_request` got to see.
    pub asked: Mutex<Vec<Subject>>,
    /// What `admit` was told.
    pub loads: Mutex<Vec<(u32, Load)>>,
    /// What `on_response` got to see.
    pub reviewed: Mutex<Vec<Response>>,
    /// What `on_complete` was told.
    pub completed: Mutex<Vec<(Subject, Completion)>>,
}

impl Scripted {
    /// The only completion there is.
    pub fn completion(&self) -> (Subject, Completion) {
        let completed = self.completed.lock().unwrap();
        assert_eq!(completed.len(), 1, "{completed:?}");
        completed[0].clone()
    }

    /// Number of completions.
    pub fn completions(&self) -> usize {
        self.completed.lock().unwrap().len()
    }
}

fn edits(model: &str) -> Vec<Edit> {
    let message = Message { role: "system".to_owned(), content: "abc".to_owned() };
    match model {
        "edit" => vec![
            Edit::SetContent(0, "Ho ho".to_owned()),
            Edit::Temperature(0.0),
            Edit::MaxTokens(9),
            Edit::AddStop("quick".to_owned()),
        ],
        "insert" => vec![Edit::InsertMessage(0, message), Edit::MaxTokens(3)],
        "remove" => vec![Edit::RemoveMessage(0), Edit::MaxTokens(3)],
        "other" => vec![Edit::Model("sql".to_owned())],
        "bad-number" => vec![Edit::TopP(f32::NAN)],
        _ => vec![Edit::SetContent(7, String::new())],
    }
}

impl Policy for Scripted {
    fn headers(&self) -> Arc<[String]> {
        Arc::new(["x-team".to_owned()])
    }

    fn authorize<'a>(&'a self, caller: &'a Caller<'a>) -> Asked<'a, Result<Identity, Denied>> {
        Asked::later(async move {
            sleep(Duration::from_millis(1)).await;
            let team = caller.headers.get("x-team");
            match (caller.key, team) {
                (Some("wrong"), _) => Err(Denied::new(403, "no", "go away")),
                (_, Some("small")) => Ok(Identity {
                    tenant: Tenant("small".to_owned()),
                    max_tokens: Some(5),
                    concurrency: Some(1),
                }),
                _ => Ok(Identity { tenant: Tenant("any".to_owned()), ..Identity::default() }),
            }
        })
    }

    fn reads_messages(&self, subject: &Subject) -> bool {
        subject.model != "blind"
    }

    fn on_request<'a>(&'a self, subject: &'a Subject) -> Asked<'a, RequestVerdict> {
        self.asked.lock().unwrap().push(subject.clone());
        Asked::now(match &*subject.model {
            "refuse" => RequestVerdict::Refuse(Denied::new(422, "not_so", "say it nicely")),
            "respond" => RequestVerdict::Respond("I was told to say this.".to_owned()),
            "edit" | "insert" | "remove" | "other" | "bad-number" | "bad-index" => {
                RequestVerdict::Edit(edits(&subject.model))
            }
            _ => RequestVerdict::Pass,
        })
    }

    fn select_adapter<'a>(&'a self, subject: &'a Subject) -> Asked<'a, Result<Selection, Denied>> {
        Asked::now(match &*subject.model {
            "sql" | "unknown" | "unsure" => Ok(Selection::Adapter(subject.model.clone())),
            "alias" => Ok(Selection::Adapter("sql".to_owned())),
            "closed" => Err(Denied::new(403, "not_yours", "not this model")),
            _ => Ok(Selection::Base),
        })
    }

    fn resolve_adapter<'a>(
        &'a self,
        _: &'a Subject,
        name: &'a str,
    ) -> Asked<'a, Result<Option<Source>, Denied>> {
        let denied = Denied::new(403, "not_listed", "ask for it first");
        Asked::now(if name == "unsure" { Err(denied) } else { Ok(None) })
    }

    fn admit<'a>(
        &'a self,
        subject: &'a Subject,
        load: &'a Load,
    ) -> Asked<'a, Result<Admission, Denied>> {
        self.loads.lock().unwrap().push((subject.prompt_tokens, *load));
        let denied = Denied::new(503, "shed", "too much");
        Asked::now(match &*subject.model {
            "shed" => Err(Denied { retry_after_s: Some(7), ..denied }),
            "brief" => Ok(Admission { priority: 1, deadline: Some(Duration::from_millis(50)) }),
            _ => Ok(Admission::default()),
        })
    }

    fn score_replicas<'a>(
        &'a self,
        _: &'a Subject,
        _: &'a Demand,
        replicas: &'a [Replica],
    ) -> Asked<'a, Result<Vec<f32>, Denied>> {
        Asked::later(async move { Ok(replicas.iter().map(score).collect()) })
    }

    fn filter(&self, subject: &Arc<Subject>, _: u32) -> Option<Box<dyn Filter>> {
        let model = match &*subject.model {
            name @ ("upper" | "halt" | "broken") => name.to_owned(),
            _ => return None,
        };
        Some(Box::new(Scissors { model, text: String::new() }))
    }

    fn on_response<'a>(
        &'a self,
        _: &'a Subject,
        response: &'a Response,
    ) -> Asked<'a, Result<Vec<ResponseEdit>, Denied>> {
        self.reviewed.lock().unwrap().push(response.clone());
        if response.choices.len() > 2 {
            return Asked::now(Err(Denied::new(500, "policy_failed", "too many to read")));
        }
        let header = ResponseEdit::SetHeader("x-reviewed".to_owned(), "yes".to_owned());
        Asked::now(Ok(vec![ResponseEdit::SetText(0, "better".to_owned()), header]))
    }

    fn reads_response(&self, subject: &Subject) -> bool {
        subject.model == "review"
    }

    fn on_complete(&self, subject: &Arc<Subject>, completion: Completion) {
        self.completed.lock().unwrap().push((Subject::clone(subject), completion));
    }
}

/// Shouts, stops at the fox, or fails at it. It takes its time, as a guest does.
struct Scissors {
    model: String,
    text: String,
}

impl Filter for Scissors {
    fn push<'a>(&'a mut self, piece: &'a str, _: bool) -> Asked<'a, Result<Released, Denied>> {
        Asked::later(async move {
            self.text += piece;
            sleep(Duration::from_millis(1)).await;
            let fox = self.text.contains("fox");
            match &*self.model {
                "halt" if fox => Ok(Released { text: "[cut]".to_owned(), stopped: true }),
                "broken" if fox => Err(Denied::new(500, "policy_failed", "no foxes")),
                "upper" => Ok(Released { text: piece.to_uppercase(), stopped: false }),
                _ => Ok(Released { text: piece.to_owned(), stopped: false }),
            }
        })
    }
}
