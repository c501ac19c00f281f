/** For tests on webgpu: the GPUs that there are, software included. */
import { existsSync } from 'node:fs';
import { listGpus } from '../lib/backend/gpus.ts';

// Debian's chromium brings Vulkan in software, which is slow but is the same to WebGPU.
const software = '/usr/lib/chromium/vk_swiftshader_icd.json';
const named = ['VK_ICD_FILENAMES', 'VK_DRIVER_FILES'].some((name) => process.env[name]);
if (!named && existsSync(software)) process.env.VK_ICD_FILENAMES = software;

export const gpus = await listGpus().catch(() => []);
export const WITHOUT_GPU = gpus.length === 0;

/** What the name of a test says where there is none. */
export const reason = WITHOUT_GPU ? ' (skipped: no GPU that WebGPU can use, nor a software one)' : '';

/** Whether there are no kernels of our own to test: no GPU, or they are switched off. */
export const WITHOUT_KERNELS = WITHOUT_GPU || process.env.TFJS_KERNELS === 'off';
