//! `ddpm forward`: one pass in PyTorch's layout, to compare with another implementation.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use ddpm_model::ModelError;
use ddpm_model::params::Gradients;
use ddpm_model::tape::Tape;
use ddpm_train::exchange::Model;
use ddpm_train::pixels::to_nchw;
use serde_json::json;

use super::args::ForwardArgs;
use super::output::Output;
use crate::failure::{ExitCode, Failure};

type Tensors = HashMap<String, Tensor>;

/// What to do about an invalid input file.
const WANTED: &str = "`ddpm forward --help` lists the tensors and their shapes";

/// The input file's tensors, in our layout.
struct Input {
    /// `[N, H, W, C]`.
    sample: Tensor,
    timesteps: Vec<f32>,
    class_labels: Option<Vec<u32>>,
    /// `[N, H, W, C]`.
    target: Option<Tensor>,
}

/// Runs the network once.
pub(super) fn run(args: &ForwardArgs, output: &Output) -> Result<(), Failure> {
    let device = Device::Cpu;
    let model = Model::open(&args.model, args.raw, &device)?;
    let input = read_input(&args.input, args.gradients)?;
    let labels = input.class_labels.as_deref();
    let mut tape = if args.gradients { Tape::gradients(&model.params) } else { Tape::inference(&model.params) };
    let y = model.unet.forward(&mut tape, &input.sample, &input.timesteps, labels);
    let y = y.map_err(|error| Failure::from(error).hint(WANTED))?;

    let mut tensors = Tensors::new();
    tensors.insert("output".to_owned(), to_nchw(y.value())?);
    let mut loss = None;
    if let Some(target) = &input.target {
        let (value, gradient) = mean_squared_error(y.value(), target, &args.input)?;
        let mut gradients = Gradients::new(model.unet.layout(), &device)?;
        tape.backward(y, gradient, &mut gradients)?;
        let flat = gradients.complete()?.to_vec()?;
        for file in model.unet.layout().specs().iter().flat_map(|spec| spec.to_file(&flat)) {
            let tensor = Tensor::from_vec(file.data, file.shape, &device).map_err(ModelError::from)?;
            tensors.insert(format!("grad.{}", file.key), tensor);
        }
        let scalar = Tensor::new(value as f32, &device).map_err(ModelError::from)?;
        tensors.insert("loss".to_owned(), scalar);
        loss = Some(value);
    }
    candle_core::safetensors::save(&tensors, &args.to).map_err(|error| {
        Failure::caused_by(ExitCode::Other, format!("{}: cannot be written", args.to.display()), &error)
    })?;
    let document = json!({"output": args.to, "tensors": tensors.len(), "loss": loss, "model": model.origin});
    output.result(&document, || format!("{} tensors in {}", tensors.len(), args.to.display()))
}

/// The mean over all elements, and its gradient.
fn mean_squared_error(output: &Tensor, target: &Tensor, path: &Path) -> Result<(f64, Tensor), Failure> {
    if output.dims() != target.dims() {
        let (found, expected) = (target.dims(), output.dims());
        return Err(bad_input(path, &format!("`target` is {found:?} (as [N, H, W, C]), the output {expected:?}")));
    }
    let mean = || -> candle_core::Result<(f64, Tensor)> {
        let difference = (output - target)?;
        let squares: f64 = difference.to_dtype(DType::F64)?.sqr()?.mean_all()?.to_scalar()?;
        let gradient = (&difference * (2.0 / difference.elem_count() as f64))?;
        Ok((squares, gradient))
    };
    Ok(mean().map_err(ModelError::from)?)
}

fn read_input(path: &Path, gradients: bool) -> Result<Input, Failure> {
    let tensors = candle_core::safetensors::load(path, &Device::Cpu).map_err(|error| {
        let message = format!("{}: cannot be read as safetensors", path.display());
        Failure::caused_by(ExitCode::Usage, message, &error).hint(WANTED)
    })?;
    let image = |name: &str| -> Result<Tensor, Failure> {
        let tensor = required(&tensors, name, path)?;
        let nhwc = || tensor.to_dtype(DType::F32)?.permute((0, 2, 3, 1))?.contiguous();
        nhwc().map_err(|error| {
            let message = format!("{}: `{name}` of shape {:?} is not [N, C, H, W]", path.display(), tensor.dims());
            Failure::caused_by(ExitCode::Usage, message, &error).hint(WANTED)
        })
    };
    let numbers = |name: &str| -> Result<Vec<i64>, Failure> {
        let tensor = required(&tensors, name, path)?;
        tensor.to_dtype(DType::I64).and_then(|tensor| tensor.to_vec1()).map_err(|error| {
            let message = format!("{}: `{name}` of shape {:?} is not i64 [N]", path.display(), tensor.dims());
            Failure::caused_by(ExitCode::Usage, message, &error).hint(WANTED)
        })
    };
    let class_labels = match tensors.contains_key("class_labels") {
        true => Some(
            numbers("class_labels")?
                .into_iter()
                .map(|label| {
                    u32::try_from(label).map_err(|_| bad_input(path, &format!("class {label} in `class_labels`")))
                })
                .collect::<Result<_, _>>()?,
        ),
        false => None,
    };
    Ok(Input {
        sample: image("sample")?,
        timesteps: numbers("timesteps")?.into_iter().map(|t| t as f32).collect(),
        class_labels,
        target: if gradients { Some(image("target")?) } else { None },
    })
}

fn required<'a>(tensors: &'a Tensors, name: &str, path: &Path) -> Result<&'a Tensor, Failure> {
    tensors.get(name).ok_or_else(|| {
        let mut found: Vec<&str> = tensors.keys().map(String::as_str).collect();
        found.sort_unstable();
        bad_input(path, &format!("no tensor `{name}`, only {}", found.join(", ")))
    })
}

fn bad_input(path: &Path, what: &str) -> Failure {
    Failure::new(ExitCode::Usage, format!("{}: {what}", path.display())).hint(WANTED)
}
