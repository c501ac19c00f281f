/** For tests: the backend that they run on. */
import { type BackendName, initBackend } from '../lib/backend/index.ts';

/** Makes the backend that the environment variable `TFJS_BACKEND` names current (wasm by default); for `beforeAll`. */
export const useBackend = (): Promise<string> => initBackend((process.env.TFJS_BACKEND ?? 'wasm') as BackendName);
