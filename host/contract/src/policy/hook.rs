//! The hooks by name.

/// One point where a policy is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Hook {
    /// Who is calling, and may they?
    Authorize,
    /// What goes in.
    OnRequest,
    /// Which adapter answers?
    SelectAdapter,
    /// Where is an adapter that nobody loaded?
    ResolveAdapter,
    /// Now, later, or not at all?
    Admit,
    /// Which replica?
    ScoreReplicas,
    /// What comes out, while it is written.
    OnChunk,
    /// A whole answer.
    OnResponse,
    /// What a request came to.
    OnComplete,
}

/// What happens when a plugin fails to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnError {
    /// The request is refused.
    Closed,
    /// The request goes on as if the plugin were not there.
    Open,
    /// The server's own answer holds, whatever other plugins said before.
    Fallback,
}

impl Hook {
    /// In the order a request meets them.
    pub const ALL: [Self; 9] = [
        Self::Authorize,
        Self::OnRequest,
        Self::SelectAdapter,
        Self::ResolveAdapter,
        Self::Admit,
        Self::ScoreReplicas,
        Self::OnChunk,
        Self::OnResponse,
        Self::OnComplete,
    ];

    /// The name of its WIT interface, which configurations use too.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Authorize => "authorize",
            Self::OnRequest => "on-request",
            Self::SelectAdapter => "select-adapter",
            Self::ResolveAdapter => "resolve-adapter",
            Self::Admit => "admit",
            Self::ScoreReplicas => "score-replicas",
            Self::OnChunk => "on-chunk",
            Self::OnResponse => "on-response",
            Self::OnComplete => "on-complete",
        }
    }

    /// What holds where the operator does not say.
    pub const fn default_on_error(self) -> OnError {
        match self {
            Self::Authorize | Self::OnRequest | Self::ResolveAdapter | Self::OnChunk => {
                OnError::Closed
            }
            Self::SelectAdapter | Self::Admit | Self::ScoreReplicas => OnError::Fallback,
            Self::OnResponse | Self::OnComplete => OnError::Open,
        }
    }
}
