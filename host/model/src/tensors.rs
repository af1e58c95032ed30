//! The names and shapes of a checkpoint's tensors.

use contract::base::Projection;
use contract::tensor::DType;

use crate::hf::ModelConfig;

/// A tensor as the checkpoint should hold it.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Its name in the files.
    pub name: String,
    /// `[rows, columns]` of a matrix, `[elements]` of a vector.
    pub shape: Vec<usize>,
}

impl Tensor {
    fn new(name: String, shape: &[usize]) -> Self {
        Self { name, shape: shape.to_vec() }
    }

    /// Rows; a vector is one.
    pub fn rows(&self) -> usize {
        if self.shape.len() == 1 { 1 } else { self.shape[0] }
    }

    /// Elements of a row.
    pub fn cols(&self) -> usize {
        *self.shape.last().expect("a tensor has one or two dimensions: this is a bug")
    }

    /// Elements in all.
    pub fn elements(&self) -> usize {
        self.rows() * self.cols()
    }
}

/// The normalisations of a decoder block.
#[derive(Clone, Copy, Debug)]
pub enum Norm {
    /// Before attention.
    Attention,
    /// Before the feed-forward block.
    Mlp,
    /// Of every query head.
    Query,
    /// Of every key head.
    Key,
}

impl ModelConfig {
    /// `[vocab, hidden]`.
    pub fn embedding(&self) -> Tensor {
        let shape = [self.shape.vocab, self.shape.hidden];
        Tensor::new("model.embed_tokens.weight".to_owned(), &shape)
    }

    /// `[vocab, hidden]`; the embedding itself where they are tied.
    pub fn head(&self) -> Tensor {
        let embedding = self.embedding();
        if self.tied {
            return embedding;
        }
        Tensor { name: "lm_head.weight".to_owned(), ..embedding }
    }

    /// `[hidden]`, before the LM head.
    pub fn final_norm(&self) -> Tensor {
        Tensor::new("model.norm.weight".to_owned(), &[self.shape.hidden])
    }

    /// `[hidden]`, or `[head_dim]` for the norms of heads.
    pub fn norm(&self, layer: usize, norm: Norm) -> Tensor {
        let (path, width) = match norm {
            Norm::Attention => ("input_layernorm", self.shape.hidden),
            Norm::Mlp => ("post_attention_layernorm", self.shape.hidden),
            Norm::Query => ("self_attn.q_norm", self.shape.head_dim),
            Norm::Key => ("self_attn.k_norm", self.shape.head_dim),
        };
        Tensor::new(format!("model.layers.{layer}.{path}.weight"), &[width])
    }

    /// `[hidden]`, behind a layer: of the next one's attention, or before the LM head.
    pub fn norm_behind(&self, layer: usize) -> Tensor {
        match layer + 1 < self.shape.layers {
            true => self.norm(layer + 1, Norm::Attention),
            false => self.final_norm(),
        }
    }

    /// `[output, input]`.
    pub fn weight(&self, layer: usize, projection: Projection) -> Tensor {
        let (input, output) = self.shape.features(projection);
        Tensor::new(format!("{}.weight", projection.module(layer)), &[output, input])
    }

    /// `[output]`, where the projection has one.
    pub fn bias(&self, layer: usize, projection: Projection) -> Option<Tensor> {
        let has = match projection {
            Projection::Q | Projection::K | Projection::V => self.bias.qkv,
            Projection::O => self.bias.output,
            Projection::Gate | Projection::Up | Projection::Down => self.bias.mlp,
        };
        let (_, output) = self.shape.features(projection);
        has.then(|| Tensor::new(format!("{}.bias", projection.module(layer)), &[output]))
    }

    /// What all tensors weigh in `dtype`.
    pub fn weights_bytes(&self, dtype: DType) -> u64 {
        let elements: usize = self.tensors().iter().map(Tensor::elements).sum();
        (elements * dtype.bytes()) as u64
    }

    /// Everything that the forward pass reads.
    pub fn tensors(&self) -> Vec<Tensor> {
        let mut tensors = vec![self.embedding(), self.final_norm()];
        if !self.tied {
            tensors.push(self.head());
        }
        for layer in 0..self.shape.layers {
            tensors.extend([Norm::Attention, Norm::Mlp].map(|norm| self.norm(layer, norm)));
            if self.head_norm {
                tensors.extend([Norm::Query, Norm::Key].map(|norm| self.norm(layer, norm)));
            }
            tensors.extend(Projection::ALL.map(|projection| self.weight(layer, projection)));
            tensors.extend(Projection::ALL.iter().filter_map(|p| self.bias(layer, *p)));
        }
        tensors
    }
}
