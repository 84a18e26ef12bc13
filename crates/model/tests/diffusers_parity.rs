//! The network against diffusers itself.
//!
//! Each file in `fixtures/` is a small `UNet2DModel` that `scripts/make-fixtures.py` built and ran: its config and
//! weights, inputs, outputs, and of some the gradients of a loss. Here the same config and weights must give the same
//! numbers, however the network is run, and a config that differs in one option must not.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use ddpm_model::params::{Gradients, ParamLayout, Params};
use ddpm_model::plain::UNet2DModel;
use ddpm_model::tape::Tape;
use ddpm_model::unet::naming::FileTensor;
use ddpm_model::unet::{Activation, DownBlockType, Resample, UNet, UNetConfig, unsupported};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value, json};

/// Of the largest output. Diffusers in f32 is 1e-6 off from the fixtures' f64.
const OUTPUT_TOLERANCE: f64 = 1e-5;
/// Of a layer's largest gradient.
const GRADIENT_TOLERANCE: f64 = 1e-4;
/// Fewer would mean that some were lost.
const FIXTURES: usize = 27;
const WITH_GRADIENTS: usize = 8;

/// A model that diffusers ran.
struct Fixture {
    name: String,
    config: UNetConfig,
    tensors: BTreeMap<String, FileTensor>,
    timesteps: Vec<f32>,
    class_labels: Option<Vec<u32>>,
}

impl Fixture {
    fn read(path: &Path) -> Self {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let bytes = std::fs::read(path).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let fixture: Value = serde_json::from_str(&header.metadata().as_ref().unwrap()["fixture"]).unwrap();
        let config = unet_config(fixture["config"].as_object().unwrap()).unwrap_or_else(|e| panic!("{name}: {e}"));
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tensors = file.iter().filter(|(_, view)| view.dtype() == Dtype::F32).map(|(key, view)| {
            let data = view.data().as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
            (key.to_owned(), FileTensor { key: key.to_owned(), shape: view.shape().to_vec(), data })
        });
        let integers = |key: &str| -> Option<Vec<i64>> {
            let view = file.tensor(key).ok()?;
            assert_eq!(view.dtype(), Dtype::I64, "{name}: {key}");
            Some(view.data().as_chunks().0.iter().map(|&b| i64::from_le_bytes(b)).collect())
        };
        let timesteps = integers("timesteps").unwrap().into_iter().map(|t| t as f32).collect();
        let class_labels =
            integers("class_labels").map(|labels| labels.into_iter().map(|c| u32::try_from(c).unwrap()).collect());
        Self { config, tensors: tensors.collect(), timesteps, class_labels, name }
    }

    /// An image batch `[N, C, H, W]` as `[N, H, W, C]`.
    fn images(&self, key: &str) -> Tensor {
        let FileTensor { shape, data, .. } = self.tensors[key].clone();
        let nchw = Tensor::from_vec(data, shape, &Device::Cpu).unwrap();
        nchw.permute((0, 2, 3, 1)).unwrap().contiguous().unwrap()
    }

    /// The tensors `prefix.<key>`, in the layout's order and ours of axes.
    fn flat(&self, prefix: &str, layout: &ParamLayout) -> Vec<f32> {
        let mut flat = vec![f32::NAN; layout.len()];
        for spec in layout.specs() {
            spec.from_file(&mut flat, |key| self.tensors.get(&format!("{prefix}.{key}")).cloned()).unwrap();
        }
        flat
    }

    fn params(&self, layout: &Arc<ParamLayout>) -> Params {
        Params::from_vec(layout, self.flat("weight", layout), &Device::Cpu).unwrap()
    }

    fn has_gradients(&self) -> bool {
        self.tensors.contains_key("loss")
    }
}

fn fixtures() -> Vec<Fixture> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut paths: Vec<_> = directory.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let fixtures: Vec<_> = paths.iter().map(|path| Fixture::read(path)).collect();
    assert_eq!(fixtures.len(), FIXTURES);
    fixtures
}

/// Our config from diffusers'. Options that we do not have must have the value that means nothing; keys that neither
/// of us knows are refused.
fn unet_config(diffusers: &Map<String, Value>) -> Result<UNetConfig, String> {
    let inert = [("_class_name", json!("UNet2DModel")), ("num_train_timesteps", Value::Null)];
    let mut config = diffusers.clone();
    config.remove("_diffusers_version");
    for (key, value) in inert {
        match config.remove(key) {
            Some(found) if found != value => return Err(format!("{key} is {found}, but we only do {value}")),
            _ => {}
        }
    }
    serde_json::from_value(Value::Object(config)).map_err(|error| error.to_string())
}

/// Largest difference, as a share of the largest value.
fn relative_error(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    assert!(got.iter().chain(want).all(|v| v.is_finite()), "values that are not finite");
    let largest = want.iter().fold(0.0, |max: f64, &v| max.max(f64::from(v).abs()));
    let worst = got.iter().zip(want).fold(0.0, |max: f64, (&g, &w)| max.max((f64::from(g) - f64::from(w)).abs()));
    worst / largest
}

fn values(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

fn algorithm<'p>(tape: Tape<'p>, exact: bool) -> Tape<'p> {
    if exact { tape.exact() } else { tape }
}

/// The largest error of our output under `config`, as a share of the largest value.
fn output_error(fixture: &Fixture, config: &UNetConfig) -> f64 {
    let unet = UNet::new(config).unwrap();
    let params = fixture.params(unet.layout());
    let (x, labels) = (fixture.images("sample"), fixture.class_labels.as_deref());
    let y = unet.forward(&mut Tape::inference(&params), &x, &fixture.timesteps, labels).unwrap();
    relative_error(&values(y.value()), &values(&fixture.images("output")))
}

#[test]
fn keys_and_shapes_are_exactly_those_of_diffusers() {
    for fixture in fixtures() {
        let unet = UNet::new(&fixture.config).unwrap();
        let ours: BTreeSet<_> = unet.layout().specs().iter().flat_map(|spec| spec.file_shapes()).collect();
        let weight = |(key, tensor): (&String, &FileTensor)| {
            key.strip_prefix("weight.").map(|key| (key.to_owned(), tensor.shape.clone()))
        };
        let theirs: BTreeSet<_> = fixture.tensors.iter().filter_map(weight).collect();
        let (more, less): (Vec<_>, Vec<_>) = (ours.difference(&theirs).collect(), theirs.difference(&ours).collect());
        assert!(more.is_empty() && less.is_empty(), "{}: only ours {more:?}, only theirs {less:?}", fixture.name);
    }
}

#[test]
fn outputs_agree_with_diffusers_however_the_network_is_run() {
    for fixture in fixtures() {
        let unet = UNet::new(&fixture.config).unwrap();
        let params = fixture.params(unet.layout());
        let (x, want) = (fixture.images("sample"), values(&fixture.images("output")));
        for exact in [false, true] {
            for (pass, tape) in [("inference", Tape::inference(&params)), ("gradients", Tape::gradients(&params))] {
                let labels = fixture.class_labels.as_deref();
                let y = unet.forward(&mut algorithm(tape, exact), &x, &fixture.timesteps, labels).unwrap();
                let error = relative_error(&values(y.value()), &want);
                assert!(error < OUTPUT_TOLERANCE, "{}, exact {exact}, {pass}: off by {error:e}", fixture.name);
            }
        }
    }
}

#[test]
fn the_network_of_candles_own_layers_agrees_with_diffusers_too() {
    for fixture in fixtures() {
        let tensor = |t: &FileTensor| Tensor::from_vec(t.data.clone(), t.shape.clone(), &Device::Cpu).unwrap();
        let weights =
            fixture.tensors.iter().filter_map(|(key, t)| Some((key.strip_prefix("weight.")?.to_owned(), tensor(t))));
        let vb = VarBuilder::from_tensors(weights.collect(), DType::F32, &Device::Cpu);
        let unet = UNet2DModel::new(&fixture.config, vb).unwrap();
        let (x, want) = (tensor(&fixture.tensors["sample"]), &fixture.tensors["output"].data);
        let y = unet.forward(&x, &fixture.timesteps, fixture.class_labels.as_deref()).unwrap();
        let error = relative_error(&values(&y), want);
        assert!(error < OUTPUT_TOLERANCE, "{}: off by {error:e}", fixture.name);
    }
}

#[test]
fn loss_and_gradients_agree_with_diffusers() {
    let fixtures: Vec<_> = fixtures().into_iter().filter(Fixture::has_gradients).collect();
    assert_eq!(fixtures.len(), WITH_GRADIENTS);
    for (fixture, exact) in fixtures.iter().flat_map(|fixture| [(fixture, false), (fixture, true)]) {
        let name = format!("{}, exact {exact}", fixture.name);
        let unet = UNet::new(&fixture.config).unwrap();
        let params = fixture.params(unet.layout());
        let mut tape = algorithm(Tape::gradients(&params), exact);
        let labels = fixture.class_labels.as_deref();
        let y = unet.forward(&mut tape, &fixture.images("sample"), &fixture.timesteps, labels).unwrap();

        let difference = (y.value() - fixture.images("target")).unwrap();
        let loss =
            values(&difference).iter().map(|&d| f64::from(d).powi(2)).sum::<f64>() / difference.elem_count() as f64;
        let error = relative_error(&[loss as f32], &fixture.tensors["loss"].data);
        assert!(error < OUTPUT_TOLERANCE, "{name}: loss off by {error:e}");

        let mut gradients = Gradients::new(unet.layout(), &Device::Cpu).unwrap();
        let dy = (&difference * (2.0 / difference.elem_count() as f64)).unwrap();
        tape.backward(y, dy, &mut gradients).unwrap();
        let (got, want) = (gradients.complete().unwrap().to_vec().unwrap(), fixture.flat("grad", unet.layout()));
        // By layer, with queries, keys and values as one: the bias of the keys cancels in the softmax, so its gradient
        // is 0 but for rounding.
        for spec in unet.layout().specs() {
            let range = spec.offset..spec.offset + spec.len();
            let error = relative_error(&got[range.clone()], &want[range]);
            assert!(error < GRADIENT_TOLERANCE, "{name}: gradient of {} off by {error:e}", spec.key);
        }
    }
}

/// Other values of one option that leave all shapes as they are: what would be computed if it were misread.
fn misread(config: &UNetConfig) -> Vec<(&'static str, UNetConfig)> {
    let other_groups = |groups: usize| if groups == 1 { 2 } else { groups / 2 };
    let other_activation = if config.act_fn == Activation::Silu { Activation::Relu } else { Activation::Silu };
    let mut all = vec![
        ("act_fn", UNetConfig { act_fn: other_activation, ..config.clone() }),
        ("center_input_sample", UNetConfig { center_input_sample: !config.center_input_sample, ..config.clone() }),
        ("mid_block_scale_factor", UNetConfig { mid_block_scale_factor: 1.1, ..config.clone() }),
        ("flip_sin_to_cos", UNetConfig { flip_sin_to_cos: !config.flip_sin_to_cos, ..config.clone() }),
        ("freq_shift", UNetConfig { freq_shift: 1.0 - config.freq_shift, ..config.clone() }),
        ("norm_eps", UNetConfig { norm_eps: config.norm_eps + 0.01, ..config.clone() }),
        ("norm_num_groups", UNetConfig { norm_num_groups: other_groups(config.norm_num_groups), ..config.clone() }),
    ];
    let convolves = |level: usize, kind: &DownBlockType| match kind {
        DownBlockType::DownBlock2D => level + 1 < config.levels(),
        DownBlockType::AttnDownBlock2D => config.downsample_type == Resample::Conv && level + 1 < config.levels(),
        DownBlockType::ResnetDownsampleBlock2D => false,
    };
    if config.down_block_types.iter().enumerate().any(|(level, kind)| convolves(level, kind)) {
        let downsample_padding = 1 - config.downsample_padding;
        all.push(("downsample_padding", UNetConfig { downsample_padding, ..config.clone() }));
    }
    if config.add_attention {
        let attention_head_dim = config.attention_head_dim.map_or(Some(2), |_| None);
        all.push(("attention_head_dim", UNetConfig { attention_head_dim, ..config.clone() }));
        if let Some(groups) = config.attn_norm_num_groups {
            let attn_norm_num_groups = Some(if groups % 2 == 0 { groups / 2 } else { 1 });
            all.push(("attn_norm_num_groups", UNetConfig { attn_norm_num_groups, ..config.clone() }));
        }
    }
    all
}

#[test]
fn a_misread_option_would_be_noticed() {
    let mut tried = BTreeMap::<_, usize>::new();
    for fixture in fixtures() {
        for (key, config) in misread(&fixture.config) {
            let error = output_error(&fixture, &config);
            assert!(
                error > 100.0 * OUTPUT_TOLERANCE,
                "{}: another {key} changes the output by {error:e}",
                fixture.name
            );
            *tried.entry(key).or_default() += 1;
        }
    }
    assert!(tried.len() == 10 && tried.values().all(|&times| times >= 2), "{tried:?}");
}

#[test]
fn an_option_we_do_not_have_is_refused_by_name() {
    let refused = |key: &str, value: Value| {
        let mut config = Map::new();
        config.insert(key.to_owned(), value);
        unet_config(&config).unwrap_err()
    };
    let named = [
        ("down_block_types", json!(["DownBlock2D", "SkipDownBlock2D"]), "SkipDownBlock2D"),
        ("down_block_types", json!(["AttnSkipDownBlock2D"]), "AttnSkipDownBlock2D"),
        ("down_block_types", json!(["KDownBlock2D"]), "KDownBlock2D"),
        ("down_block_types", json!(["CrossAttnDownBlock2D"]), "CrossAttnDownBlock2D"),
        ("up_block_types", json!(["SkipUpBlock2D"]), "SkipUpBlock2D"),
        ("up_block_types", json!(["UpDecoderBlock2D"]), "UpDecoderBlock2D"),
        ("mid_block_type", json!("UNetMidBlock2DCrossAttn"), "UNetMidBlock2DCrossAttn"),
        ("time_embedding_type", json!("fourier"), "fourier"),
        ("time_embedding_type", json!("learned"), "learned"),
        ("class_embed_type", json!("identity"), "identity"),
    ];
    for (key, value, name) in named {
        let message = refused(key, value);
        assert!(message.contains(name), "{message}");
        assert!(unsupported(name).is_some_and(|why| why.contains("not supported")), "{name}");
    }
    assert!(refused("act_fn", json!("tanh")).contains("tanh"));
    assert!(refused("downsample_type", json!("fir")).contains("fir"));
    assert!(refused("num_train_timesteps", json!(1000)).contains("num_train_timesteps"));
    assert!(refused("no_such_option", json!(1)).contains("no_such_option"));
    assert_eq!(unsupported("DownBlock2D"), None);
}
