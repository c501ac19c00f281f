/** The GPUs that the npm package `webgpu` (Dawn) finds, and which one `--gpu` means. */
import { existsSync } from 'node:fs';
import { platform } from 'node:os';
import { UserError } from '../errors.ts';

/** Those parts of WebGPU that are used here: its package is optional, and so are its types. */
type Adapter = {
  limits: Record<string, number>;
  requestDevice(descriptor: { requiredLimits: Record<string, number> }): Promise<Device>;
  info: object;
};
export type Device = {
  lost: Promise<{ reason: string; message: string }>;
  addEventListener(type: 'uncapturederror', listener: (event: UncapturedError) => void): void;
};
type UncapturedError = { error: Error; preventDefault(): void };
type Dawn = {
  create(options: string[]): { requestAdapter(options: object): Promise<Adapter | null> };
  globals: object;
};
/** Dawn's backends that can be used here, by its names; OpenGL and Direct3D 11 lack what the kernels need. */
const APIS = ['vulkan', 'metal', 'd3d12'];

/** A GPU as Dawn lists it. */
export type Gpu = { api: string; name: string };

/** @returns the GPUs that `--gpu` can choose, the fastest first */
export async function listGpus(): Promise<Gpu[]> {
  const { create } = await loadDawn();
  // Dawn has no call for this, but answers a name that no adapter has with the names of those that are there.
  const impossible = create(['adapter=no adapter has this name']);
  const answer = await impossible.requestAdapter({ powerPreference: 'high-performance' }).then(
    () => '',
    (error: Error) => error.message,
  );
  const gpus = [...answer.matchAll(/backend: '(.*)', name: '(.*)'/g)].map(([, api, name]) => ({ api, name }));
  return gpus.filter(({ api }) => APIS.includes(api));
}

/** The fastest GPU that is no software; undefined if there is none, or nothing that could look for it. */
export async function hardwareGpu(): Promise<Gpu | undefined> {
  // Where there is none that computes, Vulkan's loader says so on the terminal.
  if (platform() === 'linux' && !['/dev/dri/renderD128', '/dev/nvidia0', '/dev/dxg'].some(existsSync)) return undefined;
  const gpus = await listGpus().catch(() => []);
  return gpus.find((gpu) => !isSoftware(gpu));
}

/**
 * Picks a GPU.
 * @param gpu - its index in the list, or a part of its name, in any case; without it, the first that is not software
 * @throws {UserError} if there is none, or none such
 */
export function chooseGpu(gpus: Gpu[], gpu?: string): Gpu {
  if (gpus.length === 0) {
    throw new UserError(
      'backend webgpu found no GPU: expected one with a Vulkan, Metal or Direct3D 12 driver; install its driver (on Linux with Vulkan: `vulkaninfo --summary` must list it), or use --backend wasm',
    );
  }
  if (gpu === undefined) return gpus.find((candidate) => !isSoftware(candidate)) ?? gpus[0];
  const found = gpus.map(({ name }, i) => `${i}: ${name}`).join(', ');
  // One or two digits are an index; a name may well contain them, or "4090".
  const chosen = /^\d{1,2}$/.test(gpu)
    ? gpus[Number(gpu)]
    : gpus.find(({ name }) => gpu !== '' && name.toLowerCase().includes(gpu.toLowerCase()));
  if (!chosen)
    throw new UserError(`--gpu ${gpu} is not among the GPUs found (${found}): name one of them, or its index`);
  // Dawn takes the first adapter whose name contains the one asked for: another GPU of the same name is out of reach.
  const taken = gpus.find(({ api, name }) => api === chosen.api && name.includes(chosen.name))!;
  if (taken === chosen) return chosen;
  throw new UserError(
    `--gpu ${gpu} cannot be told from --gpu ${gpus.indexOf(taken)} by its name (${found}): take that one, or hide it from the driver, as MESA_VK_DEVICE_SELECT and VK_DRIVER_FILES can on Linux`,
  );
}

/** Whether this is no GPU but a driver that computes on the CPU. */
export const isSoftware = ({ name }: Gpu): boolean => /swiftshader|llvmpipe|lavapipe|basic render/i.test(name);

/** @throws {UserError} if the package is not installed */
export async function loadDawn(): Promise<Dawn> {
  const name = 'webgpu';
  try {
    return await import(name);
  } catch (error) {
    const reason = error instanceof Error ? error.message.split('\n')[0] : String(error);
    throw new UserError(
      `backend webgpu cannot be loaded (${reason}): run \`npm install webgpu\`, or use --backend wasm`,
    );
  }
}
