/** In place of files of lib/ that ask the hub, Node's WebGPU, or its hashes, for what a tab has already, or has from elsewhere. */
import { sha256 } from '@noble/hashes/sha2.js';
import { bytesToHex, utf8ToBytes } from '@noble/hashes/utils.js';
import type { Gpu } from '../../lib/backend/gpus.ts';
import { UserError } from '../../lib/errors.ts';
import { readFileSync } from './files.ts';

/** lib/checkpoint/hub.ts: a model is a folder of files in memory. */
export const resolveModel = async (name: string): Promise<string> => name;

// lib/hashes.ts: a browser has its own for pages that come by https, and only to wait for.
export const hashFile = async (file: string): Promise<string> => bytesToHex(sha256(readFileSync(file)));
export const hashJson = (value: unknown): string => bytesToHex(sha256(utf8ToBytes(JSON.stringify(value))));

// lib/backend/gpus.ts: a browser chooses the GPU.
type Browser = { navigator: { gpu?: { requestAdapter(options: object): Promise<object | null> } } };
const { gpu } = (globalThis as unknown as Browser).navigator;

export const listGpus = async (): Promise<Gpu[]> => [];
export const chooseGpu = (): Gpu => ({ api: 'as the browser has it', name: 'WebGPU' });
export const isSoftware = (): boolean => false;

/** @throws {UserError} if the browser has no WebGPU, or no card for it */
export async function loadDawn() {
  const adapter = await gpu?.requestAdapter({});
  if (gpu && adapter) return { create: () => gpu, globals: {} };
  throw new UserError('this browser finds no graphics card that it may use: let the processor compute it');
}
