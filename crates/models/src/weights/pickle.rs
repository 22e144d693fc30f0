//! Python's pickle, as far as `torch.save` writes it. Nothing is executed: names of classes and functions are names, and a call is what is
//! known of its result: a tensor, a dictionary, or an object that is passed over.
//!
//! Source: CPython `Lib/pickle.py`, `Lib/pickletools.py`; PyTorch `torch/_utils.py`, `torch/serialization.py`.

use std::collections::HashMap;
use std::io::{self, BufRead, Read};
use std::rc::Rc;

/// Why a pickle is not read.
#[derive(Debug, thiserror::Error)]
pub enum PickleError {
    /// It ends early, or the file cannot be read.
    #[error("cut short or unreadable: {0}")]
    Io(#[from] io::Error),
    /// It names a class or function that no checkpoint needs.
    #[error(
        "its pickle names {0}, which is no part of a checkpoint of tensors: a pickled module, or a call that Python would run (nothing is run \
         here). In Python, torch.save(model.state_dict(), FILE) writes one that is read"
    )]
    Foreign(String),
    /// It is not a pickle of this kind.
    #[error("not a checkpoint of tensors: {0}")]
    Unexpected(String),
}

type Result<T> = std::result::Result<T, PickleError>;

fn unexpected<T>(what: impl Into<String>) -> Result<T> {
    Err(PickleError::Unexpected(what.into()))
}

/// A tensor as the pickle describes it: a view of a storage. Sizes and strides are in elements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PickledTensor {
    pub storage: Storage,
    pub offset: usize,
    pub shape: Vec<usize>,
    pub strides: Vec<usize>,
}

/// The bytes that tensors are views of, kept outside the pickle. Its texts are shared: a pickle may name one storage a million times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Storage {
    /// The element type's name in Python: `torch.FloatStorage`, or `torch.float8_e4m3fn` where the storage itself has none.
    pub kind: Rc<str>,
    /// Its name in the archive.
    pub key: Rc<str>,
}

/// A value on the stack. Lists, tuples and dictionaries are places in the arena, since the pickle fills them after it has named them.
#[derive(Debug, Clone)]
pub enum Value {
    Mark,
    None,
    Bool,
    Int(i64),
    Text(Rc<str>),
    /// A class or function, `module.name`.
    Name(Rc<str>),
    /// A list or a tuple.
    Sequence(usize),
    Dict(usize),
    Storage(Rc<Storage>),
    Tensor(Rc<PickledTensor>),
    /// Something of which nothing is needed, by its class.
    Opaque(Rc<str>),
}

impl Value {
    fn kind(&self) -> &'static str {
        match self {
            Self::Mark => "a mark",
            Self::None => "None",
            Self::Bool => "a truth value",
            Self::Int(_) => "a number",
            Self::Text(_) => "a text",
            Self::Name(_) => "a name",
            Self::Sequence(_) => "a list",
            Self::Dict(_) => "a dictionary",
            Self::Storage(_) => "a storage",
            Self::Tensor(_) => "a tensor",
            Self::Opaque(_) => "an object",
        }
    }
}

/// Modules whose classes and functions published checkpoints carry beside their tensors. They are passed over.
const KNOWN_MODULES: [&str; 18] = [
    "torch",
    "collections",
    "numpy",
    "_codecs",
    "argparse",
    "typing",
    "pathlib",
    "datetime",
    "copyreg",
    "copy_reg",
    "pytorch_lightning",
    "lightning",
    "lightning_fabric",
    "omegaconf",
    "transformers",
    "diffusers",
    "accelerate",
    "peft",
];

/// The same of Python's built-in names.
const KNOWN_BUILTINS: [&str; 12] =
    ["set", "frozenset", "list", "dict", "tuple", "int", "float", "str", "bool", "bytes", "bytearray", "complex"];

fn is_known(module: &str, name: &str) -> bool {
    match module {
        "builtins" | "__builtin__" => KNOWN_BUILTINS.contains(&name),
        _ => KNOWN_MODULES.contains(&module.split('.').next().unwrap_or(module)),
    }
}

/// The most operations of a pickle. One of a thousand tensors, with a trainer's state beside them, has some hundred thousand.
const MOST_STEPS: u64 = 1 << 23;
/// The most dimensions of a tensor, as in PyTorch.
const MOST_DIMENSIONS: usize = 64;
/// The most arguments of a call that is looked at.
const MOST_ARGUMENTS: usize = 16;
/// How often a tensor may be wrapped in another type.
const MOST_WRAPPERS: usize = 4;
/// The most sizes and strides of all tensors together, where a tensor counts as one more: a million tensors.
const MOST_SIZES: usize = 1 << 23;
/// The longest name of a class or function, its module included, in bytes.
const LONGEST_NAME: usize = 256;

/// The values of a pickle that has been read.
#[derive(Debug, Default)]
pub struct Pickle {
    sequences: Vec<Vec<Value>>,
    dicts: Vec<Vec<(Value, Value)>>,
    /// The element types of all storages that it names, by key.
    pub storages: HashMap<Rc<str>, Rc<str>>,
    /// Sizes and strides of the tensors so far.
    sizes: usize,
}

impl Pickle {
    /// The entries of a dictionary.
    pub fn dict(&self, place: usize) -> &[(Value, Value)] {
        &self.dicts[place]
    }

    /// The items of a list or tuple.
    pub fn sequence(&self, place: usize) -> &[Value] {
        &self.sequences[place]
    }

    fn add_sequence(&mut self, items: Vec<Value>) -> Value {
        self.sequences.push(items);
        Value::Sequence(self.sequences.len() - 1)
    }

    fn add_dict(&mut self, entries: Vec<(Value, Value)>) -> Value {
        self.dicts.push(entries);
        Value::Dict(self.dicts.len() - 1)
    }

    fn items(&self, value: &Value) -> Result<&[Value]> {
        match value {
            Value::Sequence(place) => Ok(&self.sequences[*place]),
            other => unexpected(format!("{} where a tuple is expected", other.kind())),
        }
    }
}

/// Reads one pickle, up to its end and no further. Returns its value and what that refers to.
///
/// # Errors
/// When it is cut short, or has an operation or a name that no checkpoint needs.
pub fn read(reader: &mut impl BufRead) -> Result<(Value, Pickle)> {
    let mut machine = Machine { reader, stack: Vec::new(), memo: HashMap::new(), pickle: Pickle::default() };
    for _ in 0..MOST_STEPS {
        let op = machine.byte()?;
        if op == b'.' {
            return Ok((machine.pop()?, machine.pickle));
        }
        machine.step(op)?;
    }
    unexpected(format!("its pickle has more than {MOST_STEPS} operations"))
}

struct Machine<'a, R> {
    reader: &'a mut R,
    stack: Vec<Value>,
    memo: HashMap<u64, Value>,
    pickle: Pickle,
}

impl<R: BufRead> Machine<'_, R> {
    fn byte(&mut self) -> Result<u8> {
        Ok(self.number::<1>()? as u8)
    }

    /// A number of `N` bytes, the lowest first.
    fn number<const N: usize>(&mut self) -> Result<u64> {
        let mut bytes = [0; 8];
        self.reader.read_exact(&mut bytes[..N])?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// So many bytes. Memory grows as they come, so that a wrong length costs nothing.
    fn bytes(&mut self, len: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        (&mut *self.reader).take(len).read_to_end(&mut bytes)?;
        if (bytes.len() as u64) < len {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        Ok(bytes)
    }

    fn text(&mut self, len: u64) -> Result<Rc<str>> {
        Ok(String::from_utf8_lossy(&self.bytes(len)?).into())
    }

    fn line(&mut self) -> Result<String> {
        let mut line = Vec::new();
        self.reader.read_until(b'\n', &mut line)?;
        Ok(String::from_utf8_lossy(line.strip_suffix(b"\n").unwrap_or(&line)).into())
    }

    fn push(&mut self, value: Value) -> Result<()> {
        self.stack.push(value);
        Ok(())
    }

    fn pop(&mut self) -> Result<Value> {
        self.stack.pop().map_or_else(|| unexpected("it takes a value from an empty stack"), Ok)
    }

    fn top(&mut self) -> Result<&mut Value> {
        self.stack.last_mut().map_or_else(|| unexpected("it looks at an empty stack"), Ok)
    }

    /// The values above the last mark.
    fn since_mark(&mut self) -> Result<Vec<Value>> {
        let Some(mark) = self.stack.iter().rposition(|value| matches!(value, Value::Mark)) else {
            return unexpected("it looks for a mark that is not there");
        };
        let values = self.stack.split_off(mark + 1);
        self.stack.pop();
        Ok(values)
    }

    fn step(&mut self, op: u8) -> Result<()> {
        match op {
            b'(' => self.push(Value::Mark),
            b'0' => self.pop().map(drop),
            b'1' => self.since_mark().map(drop),
            b'2' => self.top().cloned().and_then(|top| self.push(top)),
            0x80 => self.number::<1>().map(drop),
            0x95 => self.number::<8>().map(drop),
            b'N' => self.push(Value::None),
            0x88 | 0x89 => self.push(Value::Bool),
            b'J' | b'K' | b'M' | 0x8a | 0x8b | b'G' | b'I' | b'L' | b'F' => self.numeral(op),
            b'X' | 0x8c | 0x8d | b'T' | b'U' | b'B' | b'C' | 0x8e | 0x96 | b'V' | b'S' => self.string(op),
            b']' | b')' | b'}' | 0x8f | b'l' | b't' | b'd' | 0x91 | 0x85..=0x87 => self.container(op),
            b'a' | b'e' | b's' | b'u' | 0x90 => self.fill(op),
            b'q' | b'r' | b'p' | 0x94 | b'h' | b'j' | b'g' => self.memory(op),
            b'c' | 0x93 | b'R' | 0x81 | 0x92 | b'b' | b'i' | b'o' => self.call(op),
            b'Q' => {
                let id = self.pop()?;
                let storage = self.storage(&id)?;
                self.push(storage)
            }
            other => unexpected(format!("pickle operation 0x{other:02x}, which torch.save does not write")),
        }
    }

    fn numeral(&mut self, op: u8) -> Result<()> {
        let value = match op {
            b'J' => Value::Int(i64::from(self.number::<4>()? as i32)),
            b'K' => Value::Int(self.number::<1>()? as i64),
            b'M' => Value::Int(self.number::<2>()? as i64),
            0x8a | 0x8b => {
                let len = if op == 0x8a { self.number::<1>()? } else { self.number::<4>()? };
                let bytes = self.bytes(len)?;
                // Two's complement. What is wider is no size of anything.
                let sign = if bytes.last().is_some_and(|byte| *byte >= 0x80) { 0xff } else { 0 };
                let mut wide = [sign; 8];
                wide[..bytes.len().min(8)].copy_from_slice(&bytes[..bytes.len().min(8)]);
                if bytes.len() > 8 { Value::Opaque("int".into()) } else { Value::Int(i64::from_le_bytes(wide)) }
            }
            b'G' => self.number::<8>().map(|_| Value::Opaque("float".into()))?,
            b'I' | b'L' => {
                let line = self.line()?;
                match line.as_str() {
                    "00" | "01" => Value::Bool,
                    number => number.trim_end_matches('L').parse().map_or_else(|_| Value::Opaque("int".into()), Value::Int),
                }
            }
            _ => self.line().map(|_| Value::Opaque("float".into()))?,
        };
        self.push(value)
    }

    fn string(&mut self, op: u8) -> Result<()> {
        let len = match op {
            b'X' | b'T' | b'B' => self.number::<4>()?,
            0x8c | b'U' | b'C' => self.number::<1>()?,
            b'V' | b'S' => {
                let line = self.line()?;
                return self.push(Value::Text(line.trim_matches(['\'', '"']).into()));
            }
            _ => self.number::<8>()?,
        };
        let value = match op {
            b'X' | 0x8c | 0x8d | b'T' | b'U' => Value::Text(self.text(len)?),
            _ => self.bytes(len).map(|_| Value::Opaque("bytes".into()))?,
        };
        self.push(value)
    }

    fn container(&mut self, op: u8) -> Result<()> {
        let value = match op {
            b']' | b')' | 0x8f => self.pickle.add_sequence(Vec::new()),
            b'}' => self.pickle.add_dict(Vec::new()),
            b'd' => {
                let entries = pairs(self.since_mark()?)?;
                self.pickle.add_dict(entries)
            }
            b'l' | b't' | 0x91 => {
                let items = self.since_mark()?;
                self.pickle.add_sequence(items)
            }
            count => {
                let count = usize::from(count - 0x84);
                let Some(start) = self.stack.len().checked_sub(count) else { return unexpected("a tuple of more values than there are") };
                let items = self.stack.split_off(start);
                self.pickle.add_sequence(items)
            }
        };
        self.push(value)
    }

    fn fill(&mut self, op: u8) -> Result<()> {
        let values = match op {
            b'a' => vec![self.pop()?],
            b's' => {
                let value = self.pop()?;
                vec![self.pop()?, value]
            }
            _ => self.since_mark()?,
        };
        match (op, self.top()?.clone()) {
            (b's' | b'u', Value::Dict(place)) => self.pickle.dicts[place].extend(pairs(values)?),
            (b'a' | b'e' | 0x90, Value::Sequence(place)) => self.pickle.sequences[place].extend(values),
            // Items of an object that is passed over.
            (_, Value::Opaque(_)) => {}
            (_, other) => return unexpected(format!("items for {}", other.kind())),
        }
        Ok(())
    }

    fn memory(&mut self, op: u8) -> Result<()> {
        let place = match op {
            b'q' | b'h' => self.number::<1>()?,
            b'r' | b'j' => self.number::<4>()?,
            b'p' | b'g' => {
                let line = self.line()?;
                line.parse().or_else(|_| unexpected(format!("memo {line:?}")))?
            }
            _ => self.memo.len() as u64,
        };
        if matches!(op, b'h' | b'j' | b'g') {
            let Some(value) = self.memo.get(&place).cloned() else { return unexpected(format!("memo {place} is not there")) };
            return self.push(value);
        }
        let value = self.top()?.clone();
        self.memo.insert(place, value);
        Ok(())
    }

    fn call(&mut self, op: u8) -> Result<()> {
        match op {
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                let name = named(&module, &name)?;
                self.push(name)
            }
            0x93 => match (self.pop()?, self.pop()?) {
                (Value::Text(name), Value::Text(module)) => named(&module, &name).and_then(|name| self.push(name)),
                (name, module) => unexpected(format!("a name made of {} and {}", module.kind(), name.kind())),
            },
            // The state of what was made before: nothing that is needed.
            b'b' => self.pop().map(drop),
            b'R' | 0x81 | 0x92 => {
                if op == 0x92 {
                    self.pop()?;
                }
                let (arguments, callee) = (self.pop()?, self.pop()?);
                let value = self.result_of(&callee, &arguments)?;
                self.push(value)
            }
            _ => {
                let name = if op == b'i' {
                    let (module, name) = (self.line()?, self.line()?);
                    self.since_mark()?;
                    named(&module, &name)?
                } else {
                    let parts = self.since_mark()?;
                    parts.into_iter().next().map_or_else(|| unexpected("an object without class"), Ok)?
                };
                self.push(Value::Opaque(name_of(&name)))
            }
        }
    }

    /// What calling a function gives, as far as it is needed.
    fn result_of(&mut self, callee: &Value, arguments: &Value) -> Result<Value> {
        let Value::Name(name) = callee else { return Ok(Value::Opaque(name_of(callee))) };
        let (mut name, mut arguments) = (name.clone(), self.pickle.items(arguments)?);
        // A tensor of another type, which a subclass makes: the call that is inside.
        for _ in 0..MOST_WRAPPERS {
            match (&*name, arguments) {
                ("torch._tensor._rebuild_from_type_v2", [Value::Name(inner), _, of, ..]) => {
                    (name, arguments) = (inner.clone(), self.pickle.items(of)?);
                }
                _ => break,
            }
        }
        if arguments.len() > MOST_ARGUMENTS {
            return Ok(Value::Opaque(name));
        }
        match (&*name, &arguments.to_vec()[..]) {
            ("collections.OrderedDict" | "builtins.dict" | "__builtin__.dict", []) => Ok(self.pickle.add_dict(Vec::new())),
            ("torch.Size", [sizes]) => Ok(sizes.clone()),
            ("torch._utils._rebuild_tensor_v2" | "torch._utils._rebuild_tensor", [storage, offset, shape, strides, ..]) => {
                self.tensor(storage, offset, shape, strides, None)
            }
            ("torch._utils._rebuild_tensor_v3", [storage, offset, shape, strides, _, _, kind, ..]) => {
                self.tensor(storage, offset, shape, strides, Some(kind))
            }
            ("torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state", [tensor, ..]) => Ok(tensor.clone()),
            _ => Ok(Value::Opaque(name.clone())),
        }
    }

    fn tensor(&mut self, storage: &Value, offset: &Value, shape: &Value, strides: &Value, kind: Option<&Value>) -> Result<Value> {
        let size = |value: &Value| match value {
            Value::Int(size) if *size >= 0 => Ok(*size as usize),
            Value::Int(size) => unexpected(format!("a tensor of size, stride or offset {size}")),
            other => unexpected(format!("{} as a tensor's size", other.kind())),
        };
        let sizes = |value: &Value| match self.pickle.items(value)? {
            sizes if sizes.len() > MOST_DIMENSIONS => unexpected(format!("a tensor of {} dimensions", sizes.len())),
            sizes => sizes.iter().map(size).collect::<Result<Vec<usize>>>(),
        };
        let Value::Storage(storage) = storage else { return unexpected(format!("a tensor in {}", storage.kind())) };
        let (offset, shape, strides) = (size(offset)?, sizes(shape)?, sizes(strides)?);
        let mut storage = (**storage).clone();
        if let Some(Value::Name(kind)) = kind {
            storage.kind = kind.clone();
        }
        self.pickle.sizes += shape.len() + strides.len() + 1;
        if self.pickle.sizes > MOST_SIZES {
            return unexpected(format!("its tensors have more than {MOST_SIZES} sizes and strides"));
        }
        if shape.len() != strides.len() {
            return unexpected(format!("a tensor of {} sizes and {} strides", shape.len(), strides.len()));
        }
        Ok(Value::Tensor(Rc::new(PickledTensor { storage, offset, shape, strides })))
    }

    /// `("storage", type, key, location, elements, …)`.
    fn storage(&mut self, id: &Value) -> Result<Value> {
        match self.pickle.items(id)? {
            [Value::Text(tag), Value::Name(kind), Value::Text(key), ..] if &**tag == "storage" => {
                let storage = Storage { kind: kind.clone(), key: key.clone() };
                self.pickle.storages.insert(storage.key.clone(), storage.kind.clone());
                Ok(Value::Storage(Rc::new(storage)))
            }
            other => unexpected(format!("{} values where a storage is described", other.len())),
        }
    }
}

fn pairs(values: Vec<Value>) -> Result<Vec<(Value, Value)>> {
    if values.len() % 2 == 1 {
        return unexpected("a dictionary with a key and no value");
    }
    let mut values = values.into_iter();
    Ok(std::iter::from_fn(|| Some((values.next()?, values.next()?))).collect())
}

fn named(module: &str, name: &str) -> Result<Value> {
    if !is_known(module, name) || module.len() + name.len() > LONGEST_NAME {
        // Shown on a terminal, so it must not be long or odd.
        let shown: String = format!("{module}.{name}").chars().take(100).flat_map(char::escape_default).collect();
        return Err(PickleError::Foreign(shown));
    }
    Ok(Value::Name(format!("{module}.{name}").into()))
}

fn name_of(value: &Value) -> Rc<str> {
    match value {
        Value::Name(name) | Value::Opaque(name) => name.clone(),
        _ => "object".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(bytes: &[u8]) -> Result<(Value, Pickle)> {
        read(&mut &bytes[..])
    }

    #[test]
    fn a_call_of_something_foreign_is_refused_by_its_name() {
        let error = parse(b"\x80\x02cposix\nsystem\nX\x04\x00\x00\x00true\x85R0}.").unwrap_err().to_string();
        assert!(error.contains("posix.system") && error.contains("nothing is run"), "{error}");
        assert!(parse(b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.").unwrap_err().to_string().contains("builtins.eval"));
    }

    #[test]
    fn what_trainers_leave_is_passed_over() {
        // {pytorch_lightning.Thing: 1, "a": numpy scalar}, an object as key.
        let (value, pickle) = parse(b"\x80\x02}(cpytorch_lightning.a\nThing\nK\x01X\x01\x00\x00\x00acnumpy\nscalar\n)Ru.").unwrap();
        let Value::Dict(place) = value else { panic!("{value:?}") };
        assert!(matches!(pickle.dict(place), [(Value::Name(_), Value::Int(1)), (Value::Text(_), Value::Opaque(_))]));
    }

    /// `_rebuild_from_type_v2(_rebuild_from_type_v2, None, itself)`: arguments that hold themselves.
    #[test]
    fn a_call_within_itself_ends() {
        const WRAPPER: &str = "ctorch._tensor\n_rebuild_from_type_v2\n";
        let wrapper = WRAPPER[1..].trim().replace('\n', ".");
        let opaque = |parsed: Result<(Value, Pickle)>| matches!(parsed, Ok((Value::Opaque(name), _)) if *name == wrapper);
        assert!(opaque(parse(format!("{WRAPPER}q\0]q\u{1}(h\0Nh\u{1}eR.").as_bytes())));
        // As deep as that, the call inside is found.
        let within = |wrappers: usize| {
            let inner = "(ccollections\nOrderedDict\nN)t".to_string();
            let arguments = (1..wrappers).fold(inner, |inner, _| format!("({WRAPPER}N{inner}t"));
            parse(format!("{WRAPPER}{arguments}R.").as_bytes())
        };
        assert!((1..=MOST_WRAPPERS).all(|wrappers| matches!(within(wrappers), Ok((Value::Dict(_), _)))));
        assert!(opaque(within(MOST_WRAPPERS + 1)));
    }

    /// What a pickle names once and uses a hundred thousand times is held once: a storage's long key, and the long name of a function.
    #[test]
    fn repeated_names_take_no_memory_and_tensors_are_counted() {
        let key = "k".repeat(100_000);
        let mut bytes = b"\x80\x02]q\x00ctorch._utils\n_rebuild_tensor_v2\nq\x01((X\x07\0\0\0storagectorch\nFloatStorage\nX".to_vec();
        bytes.extend((key.len() as u32).to_le_bytes());
        bytes.extend(key.as_bytes());
        // The storage; an offset; shape and strides of 40 dimensions.
        bytes.extend(b"tq\x02QK\x00(");
        bytes.extend(b"K\x01".repeat(40));
        bytes.extend(b"tq\x03h\x03tq\x04");
        let with = |tensors: usize| [&bytes[..], b"0h\x00(", &b"h\x01h\x04R".repeat(tensors), b"e."].concat();
        let (value, pickle) = parse(&with(100_000)).unwrap();
        let Value::Sequence(place) = value else { panic!("{value:?}") };
        let [Value::Tensor(first), .., Value::Tensor(last)] = pickle.sequence(place) else { panic!("no tensors") };
        assert!(Rc::ptr_eq(&first.storage.key, &last.storage.key) && first.storage.key.len() == key.len());
        assert!(parse(&with(200_000)).unwrap_err().to_string().contains("more than 8388608 sizes"));
        let long = format!("ctorch\n{}\n.", "n".repeat(300));
        assert!(parse(long.as_bytes()).unwrap_err().to_string().contains("its pickle names torch.nnn"));
    }

    #[test]
    fn damaged_pickles_are_errors() {
        for bytes in [
            &b""[..],
            b"\x80\x02",
            b".",
            b"t.",
            b"h\x07.",
            b"X\xff\xff\xff\x7fab",
            b"\x87.",
            b"}K\x01u.",
            b"Q.",
            b"R.",
            b"\x8b\xff\xff\xff\xff.",
        ] {
            assert!(parse(bytes).is_err(), "{bytes:?}");
        }
    }
}
