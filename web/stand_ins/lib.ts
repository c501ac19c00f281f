/** In place of files of lib/ that ask the hub, or Node's WebGPU, for what a tab has already. */
import type { Gpu } from '../../lib/backend/gpus.ts';
import { UserError } from '../../lib/errors.ts';

/** lib/checkpoint/hub.ts: a model is a folder of files in memory. */
export const resolveModel = async (name: string): Promise<string> => name;

// lib/backend/gpus.ts: a browser chooses the GPU.
type Browser = { navigator: { gpu?: { requestAdapter(options: object): Promise<object | null> } } };
const { gpu } = (globalThis as unknown as Browser).navigator;

export const listGpus = async (): Promise<Gpu[]> => [];
export const chooseGpu = (): Gpu => ({ api: 'as the browser has it', name: 'WebGPU' });
export const isSoftware = (): boolean => false;

/** @throws {UserError} if the browser has no WebGPU */
export async function loadDawn() {
  if (gpu) return { create: () => gpu, globals: {} };
  throw new UserError('this browser has no WebGPU: take wasm');
}
