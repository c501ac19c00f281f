/** A policy: what it consists of. */
import * as tf from '@tensorflow/tfjs';
import type { JsonObject } from '../json.ts';
import type { LlamaConfig } from './config.ts';

/** Parameters by their Hugging Face name, e.g. `model.layers.0.self_attn.q_proj.weight`. */
export type Params = Record<string, tf.Tensor>;

/**
 * A policy: its configuration and its parameters (float32 tensors).
 * - `lora`: an adapter on top of them; it is what training changes, and the parameters are frozen
 * - `gradientCheckpointing`: gradients run each layer a second time instead of keeping what is in it
 */
export type Model = { config: LlamaConfig; params: Params; lora?: Lora | undefined; gradientCheckpointing?: boolean };

/** What training changes: the adapter's parameters where there is one, else the model's. */
export const trainable = ({ params, lora }: Model): Params => lora?.params ?? params;

/** The same model with other trainable parameters. */
export const withTrainable = (model: Model, params: Params): Model =>
  model.lora ? { ...model, lora: { ...model.lora, params } } : { ...model, params };

/**
 * An adapter: the projection `x Wᵀ` becomes `x Wᵀ + scale · (x Aᵀ) Bᵀ`, where A and B are narrow (eq. 3).
 * - `params`: A of shape (rank, in) and B of shape (out, rank) of every adapted projection, under names such as
 *   `model.layers.0.self_attn.q_proj.lora_A.weight`
 * - `settings`: what `adapter_config.json` holds
 */
export type Lora = { params: Params; scale: number; settings: JsonObject };

/** Frees a model's tensors. */
export const disposeModel = ({ params, lora }: Model): void => tf.dispose([params, lora?.params ?? []]);
