//! The tensors of one layer in a file, and the change that they make together.

use std::collections::BTreeMap;

use super::Factors;
use super::change::{Change, Delta, Magnitude, Matrix};
use super::settings::Settings;
use crate::weights::{LoadError, Stored};

/// Which of a layer's tensors in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    /// LoRA's first factor, `[rank, in, k, k]`, or the same with a kernel of 1 where there is a middle one.
    Down,
    /// The third factor of a convolution, `[rank, rank, k, k]`.
    Mid,
    /// LoRA's last factor, `[out, rank, 1, 1]`.
    Up,
    /// What PEFT adds to the last factor's output, `[out]`.
    UpBias,
    /// The numerator of the scale.
    Alpha,
    /// LoHa's first pair of factors, and its core, `[rank, rank, k, k]`.
    HadaW1A,
    HadaW1B,
    HadaT1,
    /// LoHa's second pair, and its core.
    HadaW2A,
    HadaW2B,
    HadaT2,
    /// LoKr's first factor, whole or as a product.
    LokrW1,
    LokrW1A,
    LokrW1B,
    /// LoKr's second factor, whole or as a product, and its core.
    LokrW2,
    LokrW2A,
    LokrW2B,
    LokrT2,
    /// A whole difference of a weight, and of a bias.
    Diff,
    DiffB,
    /// DoRA's norms: PEFT's, always one per output, and LyCORIS's, whose shape says of what.
    Magnitude,
    DoraScale,
}

impl Part {
    /// Whether a tensor of this part may have as many dimensions as `found`, and beyond the second these sizes, beside a weight of the shape
    /// `layer`. Its values would fill another shape just as well, in another order than was meant.
    fn may_have(self, found: &[usize], layer: &[usize]) -> bool {
        use Part::*;
        let (tail, kernel) = (found.get(2..).unwrap_or_default(), layer.get(2..).unwrap_or_default());
        // A convolution by one value is a matrix.
        let is_matrix = tail.is_empty() || tail == [1, 1];
        match self {
            Alpha => true,
            Mid | HadaT1 | HadaT2 | LokrT2 => tail == kernel || (kernel.is_empty() && is_matrix),
            Diff if layer.len() == 1 => found.len() == 1,
            Down | HadaW1B | HadaW2B | LokrW2 | LokrW2B | Diff => found.len() > 1 && (is_matrix || tail == kernel),
            Up | HadaW1A | HadaW2A | LokrW1 | LokrW1A | LokrW1B | LokrW2A => found.len() > 1 && is_matrix,
            UpBias | DiffB | Magnitude | DoraScale => found.iter().filter(|size| **size != 1).count() <= 1,
        }
    }
}

/// The endings of names in all dialects; the first that fits counts.
pub(super) const ENDINGS: &[(&str, Part)] = &[
    (".lora_linear_layer.down.weight", Part::Down),
    (".lora_linear_layer.up.weight", Part::Up),
    (".lora.down.weight", Part::Down),
    (".lora.up.weight", Part::Up),
    (".lora_down.weight", Part::Down),
    (".lora_up.weight", Part::Up),
    (".lora_mid.weight", Part::Mid),
    (".lora_A.weight", Part::Down),
    (".lora_B.weight", Part::Up),
    (".lora_B.bias", Part::UpBias),
    // An attention processor's `to_q_lora.down.weight`, whose layer is found by all that comes before.
    (".down.weight", Part::Down),
    (".up.weight", Part::Up),
    (".alpha", Part::Alpha),
    (".dora_scale", Part::DoraScale),
    (".lora_magnitude_vector", Part::Magnitude),
    (".hada_w1_a", Part::HadaW1A),
    (".hada_w1_b", Part::HadaW1B),
    (".hada_t1", Part::HadaT1),
    (".hada_w2_a", Part::HadaW2A),
    (".hada_w2_b", Part::HadaW2B),
    (".hada_t2", Part::HadaT2),
    (".lokr_w1", Part::LokrW1),
    (".lokr_w1_a", Part::LokrW1A),
    (".lokr_w1_b", Part::LokrW1B),
    (".lokr_w2", Part::LokrW2),
    (".lokr_w2_a", Part::LokrW2A),
    (".lokr_w2_b", Part::LokrW2B),
    (".lokr_t2", Part::LokrT2),
    (".diff", Part::Diff),
    (".w_norm", Part::Diff),
    (".diff_b", Part::DiffB),
    (".b_norm", Part::DiffB),
];

/// The layer of a tensor, as the file calls it, and which of the layer's tensors it is.
pub(super) fn place(key: &str) -> Option<(&str, Part)> {
    // As PEFT holds them before it writes them: `….lora_A.NAME.weight`.
    let of_named_adapter = || {
        let marks = [(".lora_A.", Part::Down), (".lora_B.", Part::Up), (".lora_magnitude_vector.", Part::Magnitude)];
        marks.into_iter().find_map(|(mark, part)| {
            let (stem, name) = key.split_once(mark)?;
            let name = name.strip_suffix(".weight").unwrap_or(if part == Part::Magnitude { name } else { "." });
            (!name.contains('.')).then_some((stem, part))
        })
    };
    of_named_adapter().or_else(|| ENDINGS.iter().find_map(|(ending, part)| Some((key.strip_suffix(ending)?, *part))))
}

/// The layer that a change is for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target<'a> {
    pub(super) name: &'a str,
    pub(super) shape: &'a [usize],
    pub(super) has_bias: bool,
}

/// Why a layer's tensors cannot be turned into a change of its weight.
#[derive(Debug)]
pub(super) enum Unfit {
    /// They do not fit the layer or each other.
    Fault(String),
    /// They cannot be read.
    Unreadable(LoadError),
}

impl From<LoadError> for Unfit {
    fn from(error: LoadError) -> Self {
        Self::Unreadable(error)
    }
}

/// The tensors of one layer.
#[derive(Debug, Default)]
pub(super) struct Parts(pub(super) BTreeMap<Part, Stored>);

impl Parts {
    fn has(&self, parts: &[Part]) -> bool {
        parts.iter().any(|part| self.0.contains_key(part))
    }

    /// Takes a tensor out, as a matrix of its first dimension by all others.
    fn matrix(&mut self, part: Part) -> Result<Option<Matrix>, Unfit> {
        let Some(stored) = self.0.remove(&part) else { return Ok(None) };
        let rows = stored.shape().first().copied().unwrap_or(1);
        let columns = stored.shape().iter().skip(1).product();
        if rows == 0 || columns == 0 {
            return Err(Unfit::Fault(format!("a tensor of the shape {:?} has no values", stored.shape())));
        }
        Ok(Some(Matrix { rows, columns, values: stored.read()? }))
    }

    /// Takes a tensor out that the form cannot do without.
    fn needed(&mut self, part: Part, target: Target<'_>) -> Result<Matrix, Unfit> {
        let missing = || Unfit::Fault(format!("{} lacks its tensor {}", target.name, ending(part)));
        self.matrix(part)?.ok_or_else(missing)
    }
}

/// The shapes of tensors that change a weight of the shape `shape`, in the form that `parts` are of.
fn expected(parts: &Parts, shape: &[usize]) -> String {
    use Part::*;
    let sizes = |sizes: &[usize]| sizes.iter().map(|size| format!(", {size}")).collect::<String>();
    let (out, rest, inputs) = (shape[0], sizes(&shape[1..]), shape.get(1).copied().unwrap_or(1));
    let kernel = sizes(shape.get(2..).unwrap_or_default());
    let mut expected = match () {
        () if shape.len() == 1 => format!("{shape:?}"),
        () if parts.has(&[Mid]) => format!("[m, {inputs}, 1, 1], [n, m{kernel}] and [{out}, n]"),
        () if parts.has(&[Down, Up]) => format!("[rank{rest}] and [{out}, rank]"),
        () if parts.has(&[HadaT1, HadaT2]) => format!("[rank, {out}], [rank, {inputs}] and [rank, rank{kernel}], twice"),
        () if parts.has(&[HadaW1A, HadaW1B, HadaW2A, HadaW2B]) => {
            format!("[{out}, rank] and [rank, {}], twice", shape[1..].iter().product::<usize>())
        }
        () if parts.has(&[LokrW1, LokrW1A, LokrW1B, LokrW2, LokrW2A, LokrW2B, LokrT2]) => {
            format!("[a, b] and [{out} / a, {inputs} / b{kernel}], or factors of these")
        }
        () => format!("{shape:?}"),
    };
    if parts.has(&[Magnitude, DoraScale]) {
        expected += &format!(", of norms [{out}, 1] or [1, {inputs}]");
    }
    if parts.has(&[UpBias, DiffB]) {
        expected += &format!(", of a bias [{out}]");
    }
    expected
}

/// The name of a part, for messages.
fn ending(part: Part) -> &'static str {
    ENDINGS.iter().find(|(_, of)| *of == part).map_or("", |(ending, _)| ending)
}

/// The change that a layer's tensors make.
///
/// # Errors
/// When a tensor is missing, does not fit, cannot be read, or holds values that are not finite, alone or multiplied with others.
pub(super) fn change(target: Target<'_>, mut parts: Parts, settings: &Settings) -> Result<Change, Unfit> {
    let Target { name, shape, .. } = target;
    let told =
        |stored: &Stored| format!("{} {:?}", place(stored.name()).map_or("", |(stem, _)| &stored.name()[stem.len() + 1..]), stored.shape());
    let found: Vec<String> = parts.0.iter().filter(|(part, _)| **part != Part::Alpha).map(|(_, stored)| told(stored)).collect();
    let (expected, found) = (expected(&parts, shape), found.join(", "));
    let misfit = || Unfit::Fault(format!("{name} has the shape {shape:?}: expected tensors {expected}; found {found}"));
    if parts.0.iter().any(|(part, stored)| !part.may_have(stored.shape(), shape)) {
        return Err(misfit());
    }
    let alpha = match parts.0.remove(&Part::Alpha) {
        Some(alpha) if alpha.shape().iter().product::<usize>() != 1 => {
            return Err(Unfit::Fault(format!("{name} has an alpha of the shape {:?}, expected one number", alpha.shape())));
        }
        Some(alpha) => alpha.read_number()?,
        None => None,
    };
    let mut reader = Reader { target, alpha, settings, parts };
    let weight = reader.delta(&misfit)?;
    let magnitude = reader.magnitude(&misfit)?;
    let bias = reader.bias(weight.as_ref(), &misfit)?;
    if weight.is_none() && (magnitude.is_some() || bias.is_none()) {
        return Err(Unfit::Fault(format!("{name} lacks one of its two factors")));
    }
    if let Some(part) = reader.parts.0.keys().next() {
        return Err(Unfit::Fault(format!("{name} has a tensor {} that does not belong to its others", ending(*part))));
    }
    let change = Change { shape: shape.to_vec(), weight, magnitude, bias };
    let mut numbers = values(&change).into_iter().flatten().copied().chain(scale(&change));
    match numbers.find(|value| !value.is_finite()) {
        Some(value) => {
            Err(Unfit::Fault(format!("{name} is changed by {value}: its factors or its alpha are too large for single precision")))
        }
        None => Ok(change),
    }
}

/// What a change's factors are multiplied by.
fn scale(change: &Change) -> Option<f32> {
    match change.weight.as_ref()? {
        Delta::LowRank(factors) => Some((factors.alpha / factors.rank as f64) as f32),
        Delta::Hadamard { scale, .. } | Delta::Kronecker { scale, .. } => Some(*scale as f32),
        Delta::Full(_) => None,
    }
}

/// All values of a change.
fn values(change: &Change) -> Vec<&[f32]> {
    let mut found: Vec<&[f32]> = match &change.weight {
        None => Vec::new(),
        Some(Delta::LowRank(factors)) => vec![&factors.down, &factors.up],
        Some(Delta::Hadamard { first, second, .. }) => first.iter().chain(second).map(|matrix| &matrix.values[..]).collect(),
        Some(Delta::Kronecker { first, second, .. }) => vec![&first.values, &second.values],
        Some(Delta::Full(values)) => vec![values],
    };
    found.extend(change.bias.as_deref());
    found.extend(change.magnitude.as_ref().map(|(Magnitude::Outputs(norms) | Magnitude::Inputs(norms))| &norms[..]));
    found
}

/// Takes a layer's tensors together.
struct Reader<'a> {
    target: Target<'a>,
    /// As the file has it beside the layer.
    alpha: Option<f64>,
    settings: &'a Settings,
    parts: Parts,
}

impl Reader<'_> {
    /// Rows and columns of the layer's weight as a matrix, and the values in a kernel's window.
    fn sides(&self) -> [usize; 3] {
        let shape = self.target.shape;
        [shape[0], shape[1..].iter().product(), shape.iter().skip(2).product()]
    }

    fn alpha(&self, rank: usize) -> f64 {
        self.alpha.unwrap_or_else(|| self.settings.alpha(self.target.name, rank))
    }

    fn scale(&self, rank: usize) -> f64 {
        self.alpha(rank) / rank as f64
    }

    fn delta(&mut self, misfit: &dyn Fn() -> Unfit) -> Result<Option<Delta>, Unfit> {
        use Part::*;
        let (is_norm, parts) = (self.target.shape.len() == 1, &self.parts);
        let low_rank = parts.has(&[Down, Mid, Up]);
        let hadamard = parts.has(&[HadaW1A, HadaW1B, HadaW2A, HadaW2B]);
        let kronecker = parts.has(&[LokrW1, LokrW1A, LokrW1B, LokrW2, LokrW2A, LokrW2B]);
        let delta = match () {
            () if is_norm && (low_rank || hadamard || kronecker) => return Err(misfit()),
            () if low_rank => self.low_rank(misfit)?,
            () if hadamard => self.hadamard(misfit)?,
            () if kronecker => self.kronecker(misfit)?,
            () => {
                let [out, rest, _] = self.sides();
                let Some(Matrix { rows, columns, values }) = self.parts.matrix(Diff)? else { return Ok(None) };
                if (rows, columns) != (out, rest) {
                    return Err(misfit());
                }
                Delta::Full(values)
            }
        };
        Ok(Some(delta))
    }

    fn low_rank(&mut self, misfit: &dyn Fn() -> Unfit) -> Result<Delta, Unfit> {
        let [out, rest, window] = self.sides();
        let (Some(down), Some(up)) = (self.parts.matrix(Part::Down)?, self.parts.matrix(Part::Up)?) else {
            return Err(Unfit::Fault(format!("{} lacks one of its two factors", self.target.name)));
        };
        let scale = self.scale(down.rows);
        let down = match self.parts.matrix(Part::Mid)? {
            Some(mid) if mid.columns == down.rows * window && down.columns * window == rest => mid.folded(&down),
            Some(_) => return Err(misfit()),
            None => down,
        };
        let rank = down.rows;
        if (down.columns, up.rows, up.columns) != (rest, out, rank) {
            return Err(misfit());
        }
        // To the bit where nothing was folded.
        let alpha = if self.alpha(rank) / rank as f64 == scale { self.alpha(rank) } else { scale * rank as f64 };
        Ok(Delta::LowRank(Factors { shape: self.target.shape.to_vec(), rank, alpha, down: down.values, up: up.values }))
    }

    fn hadamard(&mut self, misfit: &dyn Fn() -> Unfit) -> Result<Delta, Unfit> {
        let first = self.pair([Part::HadaW1A, Part::HadaW1B, Part::HadaT1], misfit)?;
        let second = self.pair([Part::HadaW2A, Part::HadaW2B, Part::HadaT2], misfit)?;
        let [out, rest, _] = self.sides();
        let fits = |[up, down]: &[Matrix; 2]| (up.rows, down.columns) == (out, rest);
        if !fits(&first) || !fits(&second) {
            return Err(misfit());
        }
        Ok(Delta::Hadamard { scale: self.scale(first[1].rows), first, second })
    }

    /// Two factors whose product is `[out, in · k · k]`. Beside a core, both have the rank in front.
    fn pair(&mut self, [up, down, core]: [Part; 3], misfit: &dyn Fn() -> Unfit) -> Result<[Matrix; 2], Unfit> {
        let [out, rest, window] = self.sides();
        let (up, down) = (self.parts.needed(up, self.target)?, self.parts.needed(down, self.target)?);
        let [up, down] = match self.parts.matrix(core)? {
            None => [up, down],
            Some(core) if core.columns == down.rows * window && down.columns * window <= rest => [up.transposed(), core.folded(&down)],
            Some(_) => return Err(misfit()),
        };
        // Held against the layer before they are multiplied: the product of two small factors may fill any memory.
        if up.columns == down.rows && up.rows <= out && down.columns <= rest { Ok([up, down]) } else { Err(misfit()) }
    }

    fn kronecker(&mut self, misfit: &dyn Fn() -> Unfit) -> Result<Delta, Unfit> {
        let [out, rest, window] = self.sides();
        let mut rank = None;
        let first = match self.parts.matrix(Part::LokrW1)? {
            Some(whole) => whole,
            None => {
                let (a, b) = (self.parts.needed(Part::LokrW1A, self.target)?, self.parts.needed(Part::LokrW1B, self.target)?);
                rank = Some(b.rows);
                if a.columns == b.rows && a.rows <= out && b.columns <= rest { a.times(&b) } else { return Err(misfit()) }
            }
        };
        let second = match self.parts.matrix(Part::LokrW2)? {
            Some(whole) => whole,
            None => {
                rank = self.parts.0.get(&Part::LokrW2B).and_then(|stored| stored.shape().first().copied());
                let [a, b] = self.pair([Part::LokrW2A, Part::LokrW2B, Part::LokrT2], misfit)?;
                a.times(&b)
            }
        };
        let fits = first.rows * second.rows == out && first.columns * second.columns == rest && second.columns.is_multiple_of(window);
        // Where both factors are whole there is no rank, and alpha does not count.
        let scale = rank.map_or_else(|| self.settings.scale_of_whole_lokr(self.target.name), |rank| self.scale(rank));
        if fits { Ok(Delta::Kronecker { scale, first, second }) } else { Err(misfit()) }
    }

    fn magnitude(&mut self, misfit: &dyn Fn() -> Unfit) -> Result<Option<Magnitude>, Unfit> {
        let shape = self.target.shape;
        // PEFT's have a dimension of 1 in front where the layer is a convolution.
        if let Some(Matrix { values, .. }) = self.parts.matrix(Part::Magnitude)? {
            return if values.len() == shape[0] { Ok(Some(Magnitude::Outputs(values))) } else { Err(misfit()) };
        }
        match self.parts.matrix(Part::DoraScale)? {
            None => Ok(None),
            Some(Matrix { rows, columns: 1, values }) if rows == shape[0] => Ok(Some(Magnitude::Outputs(values))),
            Some(Matrix { rows: 1, columns, values }) if shape.get(1) == Some(&columns) => Ok(Some(Magnitude::Inputs(values))),
            Some(_) => Err(misfit()),
        }
    }

    fn bias(&mut self, delta: Option<&Delta>, misfit: &dyn Fn() -> Unfit) -> Result<Option<Vec<f32>>, Unfit> {
        let whole = self.parts.matrix(Part::DiffB)?.map(|matrix| matrix.values);
        let of_factor = match delta {
            Some(Delta::LowRank(Factors { alpha, rank, .. })) => self.parts.matrix(Part::UpBias)?.map(|matrix| {
                let scale = alpha / *rank as f64;
                matrix.values.iter().map(|value| (f64::from(*value) * scale) as f32).collect()
            }),
            _ => None,
        };
        let Some(bias) = whole.or(of_factor) else { return Ok(None) };
        if !self.target.has_bias {
            return Err(Unfit::Fault(format!("{} has no bias, which the file changes", self.target.name)));
        }
        if bias.len() == self.target.shape[0] { Ok(Some(bias)) } else { Err(misfit()) }
    }
}
